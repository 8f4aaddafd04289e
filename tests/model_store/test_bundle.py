"""Bundles: sealed, packed, unpacked and refused; golden samples in and out without a pickle."""

import json
import pickle
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from model_store.bundle import Limits, bare_bundle, check_file_name, file_sha256, open_bundle, pack, seal, unpack
from model_store.errors import BadInput, Conflict, Refusal, TooLarge, Unprocessable
from model_store.golden import Golden, read_golden, read_golden_folder, write_golden
from model_store.manifest import Manifest, TensorSpec
from model_store.tensors import NUMPY_OF, object_array

CASES = Path(__file__).parents[3] / "shared" / "data" / "onnx_cases"


def save_add_graph(path: Path, name: str = "x", elem: int = TensorProto.FLOAT) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Add", [name, name], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, elem, ["N", 2])],
        [helper.make_tensor_value_info("y", elem, ["N", 2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "b"
    (path / "golden" / "0").mkdir(parents=True)
    save_add_graph(path / "model.onnx")
    (path / "card.md").write_text("---\nlicense: mit\n---\n说明\n", encoding="utf-8")
    write_golden(path, [Golden("0", {"x": np.ones((1, 2), np.float32)}, {"y": np.full((1, 2), 2, np.float32)})])
    return path


@pytest.fixture
def manifest() -> Manifest:
    spec = {"dtype": "FP32", "shape": [-1, 2]}
    return Manifest(name="acme/add", inputs=[TensorSpec(name="x", **spec)], outputs=[TensorSpec(name="y", **spec)])


def zip_of(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def entries_of(folder: Path) -> dict[str, bytes]:
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def code_of(error: pytest.ExceptionInfo[Refusal]) -> str:
    assert error.value.zh
    assert error.value.remedy_zh
    assert error.value.remedy_en
    return error.value.code


# --- sealing, packing -------------------------------------------------------------------------------------------------


def test_seal_names_every_file_with_its_hash_and_the_digest_is_the_manifests(folder: Path, manifest: Manifest) -> None:
    bundle = seal(folder, manifest)
    assert set(bundle.manifest.files) == {"model.onnx", "card.md", "golden/0/inputs.npz", "golden/0/outputs.npz"}
    assert bundle.manifest.files["model.onnx"].sha256 == file_sha256(folder / "model.onnx")
    assert bundle.digest == file_sha256(folder / "manifest.json")
    assert open_bundle(folder, verify=True) == bundle


def test_sealing_again_changes_nothing(folder: Path, manifest: Manifest) -> None:
    first = seal(folder, manifest)
    assert seal(folder, first.manifest).digest == first.digest


def test_the_same_bundle_packs_to_the_same_bytes_and_comes_back(
    folder: Path, manifest: Manifest, tmp_path: Path
) -> None:
    bundle = seal(folder, manifest)
    one = pack(bundle, tmp_path / "one.zip").read_bytes()
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    assert pack(open_bundle(copied), tmp_path / "two.zip").read_bytes() == one
    back = unpack(tmp_path / "one.zip", tmp_path / "back")
    assert back.digest == bundle.digest
    assert sorted(each.name for each in tmp_path.iterdir()) == ["b", "back", "copy", "one.zip", "two.zip"]


def test_unpacking_the_same_bundle_twice_is_fine_and_another_is_refused(
    folder: Path, manifest: Manifest, tmp_path: Path
) -> None:
    pack(seal(folder, manifest), tmp_path / "one.zip")
    unpack(tmp_path / "one.zip", tmp_path / "to")
    assert unpack(tmp_path / "one.zip", tmp_path / "to").path == tmp_path / "to"
    pack(seal(folder, manifest.model_copy(update={"title_en": "other"})), tmp_path / "two.zip")
    with pytest.raises(Conflict) as error:
        unpack(tmp_path / "two.zip", tmp_path / "to")
    assert code_of(error) == "BUNDLE_EXISTS"


def test_a_manifest_with_nan_is_refused(folder: Path, manifest: Manifest) -> None:
    with pytest.raises(BadInput) as error:
        seal(folder, manifest.model_copy(update={"golden_rtol": float("nan")}))
    assert code_of(error) == "MANIFEST_INVALID"
    assert not (folder / "manifest.json").exists()


def test_a_link_in_the_folder_is_refused(folder: Path, manifest: Manifest) -> None:
    (folder / "leak").symlink_to("/etc/passwd")
    with pytest.raises(BadInput) as error:
        seal(folder, manifest)
    assert code_of(error) == "FILE_NAME_INVALID"


def test_a_changed_file_is_found(folder: Path, manifest: Manifest) -> None:
    seal(folder, manifest)
    (folder / "card.md").write_text("changed")
    with pytest.raises(Unprocessable) as error:
        open_bundle(folder, verify=True)
    assert code_of(error) == "BUNDLE_FILE_CHANGED"
    assert error.value.field == "card.md"


def test_an_unnamed_file_is_found(folder: Path, manifest: Manifest) -> None:
    seal(folder, manifest)
    (folder / "extra.bin").write_bytes(b"x")
    with pytest.raises(Unprocessable) as error:
        open_bundle(folder, verify=True)
    assert code_of(error) == "BUNDLE_FILE_UNNAMED"


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"{", "manifest.json"),
        (b'{"name": "a/b"}', "inputs"),
        (b'{"name": "a/b", "inputs": [], "outputs": [], "pre": [{"op": "exec"}]}', "pre.0"),
        (b'{"name": "a/b", "inputs": [], "outputs": [], "surprise": 1}', "surprise"),
    ],
)
def test_a_wrong_manifest_says_which_field(folder: Path, content: bytes, field: str) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(Unprocessable) as error:
        open_bundle(folder)
    assert code_of(error) == "MANIFEST_INVALID"
    assert error.value.field == field


# --- hostile archives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../out", "/etc/x", "a/../../b", "a\\b", ".hidden", "a//b", "名.bin", "x\x00y", "a/b."]
)
def test_an_archive_with_a_wandering_name_is_refused(
    folder: Path, manifest: Manifest, tmp_path: Path, name: str
) -> None:
    seal(folder, manifest)
    path = zip_of(tmp_path / "x.zip", entries_of(folder))
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("placeholder")
        entry.filename = name
        archive.writestr(entry, b"x")
    with pytest.raises(Refusal):
        unpack(path, tmp_path / "to")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["b", "x.zip"]


def test_a_link_in_an_archive_is_refused(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    seal(folder, manifest)
    path = zip_of(tmp_path / "x.zip", entries_of(folder))
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("weights.bin")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, b"/etc/passwd")
    with pytest.raises(BadInput) as error:
        unpack(path, tmp_path / "to")
    assert code_of(error) == "ZIP_ENTRY_REFUSED"


def test_names_that_differ_only_in_case_are_refused(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    seal(folder, manifest)
    path = zip_of(tmp_path / "x.zip", entries_of(folder) | {"CARD.md": b""})
    with pytest.raises(BadInput) as error:
        unpack(path, tmp_path / "to")
    assert code_of(error) == "ZIP_ENTRY_REFUSED"


def test_a_zip_bomb_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "x.zip", {"manifest.json": b"{}", "zeros.bin": bytes(8 * 1024 * 1024)})
    with pytest.raises(TooLarge) as error:
        unpack(path, tmp_path / "to", Limits(ratio_free_bytes=1024 * 1024))
    assert code_of(error) == "ZIP_BOMB"


def test_an_archive_over_its_limits_is_refused(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    pack(seal(folder, manifest), tmp_path / "x.zip")
    for limits, code in [
        (Limits(max_files=2), "BUNDLE_TOO_MANY_FILES"),
        (Limits(max_file_bytes=10), "BUNDLE_TOO_LARGE"),
        (Limits(max_total_bytes=100), "BUNDLE_TOO_LARGE"),
    ]:
        with pytest.raises(TooLarge) as error:
            unpack(tmp_path / "x.zip", tmp_path / "to", limits)
        assert code_of(error) == code
        assert not (tmp_path / "to").exists()


def test_half_an_upload_leaves_nothing_behind(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    whole = pack(seal(folder, manifest), tmp_path / "x.zip").read_bytes()
    for cut in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        (tmp_path / "cut.zip").write_bytes(whole[:cut])
        with pytest.raises(Unprocessable) as error:
            unpack(tmp_path / "cut.zip", tmp_path / "to")
        assert code_of(error) == "BUNDLE_NOT_ZIP"
        assert not (tmp_path / "to").exists()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_whole(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp = tmp_path_factory.mktemp("zip")
    source = tmp / "b"
    source.mkdir()
    save_add_graph(source / "model.onnx")
    spec = TensorSpec(name="x", dtype="FP32", shape=[-1, 2])
    bundle = seal(source, Manifest(name="acme/add", inputs=[spec], outputs=[spec]))
    content = bytearray(pack(bundle, tmp / "x.zip").read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    (tmp / "y.zip").write_bytes(content)
    try:
        assert unpack(tmp / "y.zip", tmp / "to").digest == bundle.digest
    except Refusal:
        assert not (tmp / "to").exists()


def test_an_archive_whose_entries_begin_before_the_file_is_refused(
    folder: Path, manifest: Manifest, tmp_path: Path
) -> None:
    content = bytearray(pack(seal(folder, manifest), tmp_path / "x.zip").read_bytes())
    end = content.rindex(b"PK\x05\x06")  # the end record says where the directory begins: too late by 256 bytes
    content[end + 16 : end + 20] = (int.from_bytes(content[end + 16 : end + 20], "little") + 256).to_bytes(4, "little")
    (tmp_path / "y.zip").write_bytes(content)
    with pytest.raises(Unprocessable) as error:
        unpack(tmp_path / "y.zip", tmp_path / "to")
    assert code_of(error) == "BUNDLE_NOT_ZIP"


def test_a_zipped_folder_from_a_desktop_is_understood(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    digest = seal(folder, manifest).digest
    entries = {f"my bundle/{name}": content for name, content in entries_of(folder).items()}
    entries |= {"__MACOSX/._model.onnx": b"x", "my bundle/.DS_Store": b"x"}
    assert unpack(zip_of(tmp_path / "x.zip", entries), tmp_path / "to").digest == digest


def test_a_manifest_written_by_hand_is_sealed_on_request(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"name": "acme/add", "inputs": [], "outputs": []}))
    path = zip_of(tmp_path / "x.zip", entries_of(folder))
    with pytest.raises(Unprocessable) as error:
        unpack(path, tmp_path / "to")
    assert code_of(error) == "BUNDLE_FILE_UNNAMED"
    assert "model.onnx" in unpack(path, tmp_path / "to", seal_if_unsealed=True).manifest.files


@given(st.text(max_size=300))
def test_a_lawful_file_name_stays_inside_its_folder(name: str) -> None:
    try:
        check_file_name(name)
    except BadInput:
        return
    resolved = Path("/base", name)
    assert ".." not in resolved.parts
    assert resolved.is_relative_to("/base")
    assert name.isascii()


# --- bare graphs ------------------------------------------------------------------------------------------------------


def test_a_bare_graph_becomes_a_bundle_with_its_own_tensors(tmp_path: Path) -> None:
    save_add_graph(tmp_path / "m.onnx", name="in:0/x")
    bundle = bare_bundle(tmp_path / "m.onnx", "acme--bare", tmp_path / "to")
    assert bundle.manifest.name == "acme/bare"
    assert bundle.manifest.task == "tensor"
    assert bundle.manifest.inputs == [TensorSpec(name="in:0/x", dtype="FP32", shape=[-1, 2])]
    assert not bundle.manifest.batching.dynamic
    assert open_bundle(tmp_path / "to", verify=True).digest == bundle.digest


def test_an_initializer_that_is_listed_as_an_input_is_no_input(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [weight],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert [spec.name for spec in bare_bundle(tmp_path / "m.onnx", "a/b", tmp_path / "to").manifest.inputs] == ["x"]


def refused_model(tmp_path: Path, content: bytes) -> str:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(Unprocessable) as error:
        bare_bundle(tmp_path / "m.onnx", "a/b", tmp_path / "to")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.onnx"]
    return code_of(error)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_named_onnx_is_refused_unopened(tmp_path: Path, protocol: int) -> None:
    assert refused_model(tmp_path, pickle.dumps({"weights": [1.0]}, protocol=protocol)) == "MODEL_IS_PICKLE"


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04....", b"not a model at all", b"\x00" * 64, b"{}", bytes(range(256))]
)
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    assert refused_model(tmp_path, content) == "MODEL_NOT_ONNX"


def test_a_graph_cut_short_is_refused(tmp_path: Path) -> None:
    whole = save_add_graph(tmp_path / "m.onnx").read_bytes()
    for cut in range(0, len(whole) - 8, 7):
        assert refused_model(tmp_path, whole[:cut]) == "MODEL_NOT_ONNX"


def test_a_graph_with_weights_elsewhere_is_refused(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Add", ["w", "w"], ["y"])], "g", [], [out], [weight])
    assert refused_model(tmp_path, helper.make_model(graph).SerializeToString()) == "MODEL_EXTERNAL_DATA"


def test_a_graph_of_sequences_is_refused(tmp_path: Path) -> None:
    out = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("SequenceConstruct", ["x"], ["y"])], "g", [value], [out])
    assert refused_model(tmp_path, helper.make_model(graph).SerializeToString()) == "TENSOR_TYPE_UNSUPPORTED"


# --- golden samples ---------------------------------------------------------------------------------------------------

ARRAYS = st.one_of(
    hnp.arrays(
        dtype=st.sampled_from([dtype for dtype in NUMPY_OF.values() if dtype.kind in "?buif"]),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0)).map(
        lambda a: a.astype(ml_dtypes.bfloat16)
    ),
    st.lists(st.binary(max_size=9), max_size=5).map(lambda items: object_array(items, [len(items)])),
)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype == object:
        return list(left.flat) == list(right.flat)
    return left.tobytes() == right.tobytes()


@settings(max_examples=80, deadline=None)
@given(tensors=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=12), ARRAYS, max_size=5))
def test_golden_tensors_of_any_name_type_and_shape_come_back(
    tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("golden")
    write_golden(folder, [Golden("0", tensors, {"file": np.array(1.5)})])
    (pair,) = read_golden(folder)
    assert set(pair.inputs) == set(tensors)
    assert all(same(pair.inputs[name], tensors[name]) for name in tensors)
    assert pair.outputs["file"].shape == ()


def test_pairs_are_read_in_numeric_order(tmp_path: Path) -> None:
    write_golden(tmp_path, [Golden(str(n), {"x": np.array([n])}, {}) for n in (10, 2, 0)])
    assert [int(pair.inputs["x"][0]) for pair in read_golden(tmp_path)] == [0, 2, 10]


def test_samples_saved_with_plain_numpy_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.asfortranarray(np.arange(6.0).reshape(2, 3)), s=np.array(["中", "b"]))
    np.savez_compressed(tmp_path / "outputs.npz", y=np.arange(3, dtype=">i4"))
    (pair,) = read_golden_folder(tmp_path, ["x"], ["y"])
    assert pair.inputs["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert pair.inputs["s"].tolist() == ["中".encode(), b"b"]
    assert pair.outputs["y"].dtype == np.int32


def test_a_pickle_in_a_sample_is_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "outputs.npz", y=np.ones(1))
    with pytest.raises(Unprocessable) as error:
        read_golden_folder(tmp_path, ["x"], ["y"])
    assert code_of(error) == "GOLDEN_UNREADABLE"


def test_a_sample_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    zip_of(tmp_path / "inputs.npz", {"x.npy": header + text.ljust(117) + b"\n" + bytes(8)})
    with pytest.raises(Unprocessable) as error:
        read_golden_folder(tmp_path, ["x"], ["y"])
    assert code_of(error) == "GOLDEN_UNREADABLE"


def save_proto(path: Path, array: np.ndarray, name: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(numpy_helper.from_array(array, name).SerializeToString())


def test_backend_samples_follow_the_order_of_the_graphs_inputs(tmp_path: Path) -> None:
    save_proto(tmp_path / "test_data_set_0" / "input_0.pb", np.array([b"\xe4\xb8\xad"], dtype=object))
    save_proto(tmp_path / "test_data_set_0" / "input_1.pb", np.float32(2.5).reshape(()), "b")
    save_proto(tmp_path / "test_data_set_0" / "output_0.pb", np.zeros((0, 3), ml_dtypes.bfloat16))
    (pair,) = read_golden_folder(tmp_path, ["a", "b"], ["y"])
    assert pair.inputs["a"].tolist() == ["中".encode()]
    assert pair.inputs["b"].shape == ()
    assert pair.outputs["y"].dtype == ml_dtypes.bfloat16
    assert pair.outputs["y"].shape == (0, 3)


def test_a_sample_with_too_many_tensors_or_rubbish_is_refused(tmp_path: Path) -> None:
    save_proto(tmp_path / "input_0.pb", np.ones(1))
    (tmp_path / "input_1.pb").write_bytes(b"\xff\xff rubbish")
    for names in (["a", "b"], []):
        with pytest.raises(Unprocessable) as error:
            read_golden_folder(tmp_path, names, [])
        assert code_of(error) == "GOLDEN_UNREADABLE"


def test_a_sample_that_points_at_a_file_is_refused(tmp_path: Path) -> None:
    proto = TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    proto.external_data.add(key="location", value="/etc/passwd")
    (tmp_path / "input_0.pb").write_bytes(proto.SerializeToString())
    with pytest.raises(Unprocessable) as error:
        read_golden_folder(tmp_path, ["a"], [])
    assert code_of(error) == "GOLDEN_UNREADABLE"


def test_an_empty_golden_folder_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(Unprocessable) as error:
        read_golden_folder(tmp_path, ["a"], [])
    assert code_of(error) == "GOLDEN_MISSING"


@pytest.mark.skipif(not CASES.exists(), reason="../shared/data is not here")
def test_real_backend_cases_become_bundles_with_their_samples(tmp_path: Path) -> None:
    wanted = json.loads((CASES / "cases.json").read_text())["cases"][::21]
    with tarfile.open(CASES / "cases.tar.gz") as archive:
        archive.extractall(tmp_path / "cases", filter="data")
    for number, case in enumerate(wanted):
        source = tmp_path / "cases" / case["path"]
        bundle = bare_bundle(source / "model.onnx", f"cases/c{number}", tmp_path / str(number), golden=source)
        (pair,) = read_golden(bundle.path)
        assert [spec.name for spec in bundle.manifest.inputs] == [item["name"] for item in case["inputs"]]
        assert [list(pair.inputs[spec.name].shape) for spec in bundle.manifest.inputs] == case["input_shapes"]
        assert [list(pair.outputs[spec.name].shape) for spec in bundle.manifest.outputs] == case["output_shapes"]
