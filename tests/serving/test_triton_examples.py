"""The runner of Triton's client examples, with scripts of our own: theirs are not part of this repository."""

from __future__ import annotations

from pathlib import Path

from tests.triton_examples.runner import Result, models_counted, run_all, ways_of

CALL = """
import argparse
import sys
import numpy as np
import tritonclient.http as client

parser = argparse.ArgumentParser()
parser.add_argument("-u", "--url", default="localhost:8000")
triton = client.InferenceServerClient(parser.parse_args().url)
tensors = [client.InferInput(f"INPUT{i}", [1, 16], "INT32") for i in (0, 1)]
for tensor in tensors:
    tensor.set_data_from_numpy(np.full((1, 16), 3, np.int32))
"""


def test_each_script_passes_fails_or_does_not_apply_for_a_reason(tmp_path: Path) -> None:
    scripts = {
        "a_sum.py": CALL + "assert triton.infer('simple', tensors).as_numpy('OUTPUT0').tolist() == [[6] * 16]\n",
        "b_wrong.py": CALL + "triton.infer('simple', tensors)\nsys.exit('incorrect difference')\n",
        "c_silent.py": CALL + "if triton.is_model_ready('no_such_model'):\n    print('PASS')\n",
        "d_sequence.py": CALL + "triton.infer('simple', tensors, sequence_id=7, sequence_start=True)\n",
        "e_shared.py": CALL + "triton.register_system_shared_memory('region', '/region', 64)\n",
        "f_gpu.py": "import tritonclient.utils.cuda_shared_memory\n",
        "g_fixed.py": "import tritonclient.http\ntritonclient.http.InferenceServerClient('localhost:8000')\n",
    }
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(text)
    results = {result.name: result for result in run_all(folder, tmp_path / "scratch")}
    assert list(results) == sorted(scripts)
    assert results["a_sum.py"] == Result("a_sum.py", "passed")
    assert results["b_wrong.py"] == Result("b_wrong.py", "failed", "ended with 1: incorrect difference")
    assert results["c_silent.py"].outcome == "failed"
    assert "printed no PASS" in results["c_silent.py"].why
    assert results["d_sequence.py"].outcome == results["e_shared.py"].outcome == "not applicable"
    assert "sequences" in results["d_sequence.py"].why
    assert results["e_shared.py"].why == "not offered: shared memory"
    assert "GPU" in results["f_gpu.py"].why
    assert "takes no address" in results["g_fixed.py"].why


def test_a_script_says_how_many_models_it_wants_and_in_which_ways_it_can_be_run() -> None:
    assert models_counted("if len(client.get_model_repository_index().models) != 7:\n    sys.exit(1)") == 7
    assert models_counted("client.infer('simple')") == 8
    picture = Path("picture.png")
    assert ways_of("plain", picture) == [[]]
    assert len(ways_of('"--request-compression-algorithm"', picture)) == 3
    assert ["--streaming" in way for way in ways_of('"image_filename" localhost:8001', picture)] == [False] * 3 + [True]
