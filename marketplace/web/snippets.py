"""One call in four languages, as a visitor would paste it; the key comes from the environment, never into the text."""

from __future__ import annotations

import orjson

PICTURE = "part.png"


def json_snippets(url: str, body: str) -> dict[str, str]:
    """A call with named features, `body` being the JSON that is sent."""
    quoted = orjson.dumps(body).decode()  # a lawful string literal in Python, C# and JavaScript alike
    shell = body.replace("'", "'\\''")
    return {
        "curl": f'curl {url} \\\n  -H "Authorization: Bearer $ALGOMART_KEY" \\\n'
        f"  -H 'Content-Type: application/json' \\\n  -d '{shell}'",
        "Python": _python(url, quoted, "application/json"),
        "C#": _csharp(url, f'var body = new StringContent({quoted}, Encoding.UTF8, "application/json");\n'),
        "Node": _node(url, quoted, "application/json"),
    }


def image_snippets(url: str) -> dict[str, str]:
    """A call with one picture, sent as the bytes of its file."""
    return {
        "curl": f'curl {url} \\\n  -H "Authorization: Bearer $ALGOMART_KEY" \\\n'
        f"  -H 'Content-Type: image/png' \\\n  --data-binary @{PICTURE}",
        "Python": _python(url, f'open("{PICTURE}", "rb").read()', "image/png"),
        "C#": _csharp(
            url,
            f'var body = new ByteArrayContent(File.ReadAllBytes("{PICTURE}"));\n'
            'body.Headers.ContentType = new MediaTypeHeaderValue("image/png");\n',
        ),
        "Node": 'import { readFile } from "node:fs/promises";\n\n'
        + _node(url, f'await readFile("{PICTURE}")', "image/png"),
    }


def _python(url: str, content: str, kind: str) -> str:
    return (
        "import os, httpx\n\n"
        f'answer = httpx.post("{url}",\n    content={content},\n'
        '    headers={"Authorization": "Bearer " + os.environ["ALGOMART_KEY"],\n'
        f'             "Content-Type": "{kind}"}})\nprint(answer.json())'
    )


def _csharp(url: str, body: str) -> str:
    return (
        "using System.Net.Http.Headers;\nusing System.Text;\n\nvar http = new HttpClient();\n"
        'http.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", '
        'Environment.GetEnvironmentVariable("ALGOMART_KEY"));\n'
        f'{body}var answer = await http.PostAsync("{url}", body);\n'
        "Console.WriteLine(await answer.Content.ReadAsStringAsync());"
    )


def _node(url: str, body: str, kind: str) -> str:
    return (
        f'const answer = await fetch("{url}", {{\n  method: "POST",\n  headers: {{\n'
        f'    Authorization: "Bearer " + process.env.ALGOMART_KEY,\n    "Content-Type": "{kind}",\n  }},\n'
        f"  body: {body},\n}});\nconsole.log(await answer.json());"
    )
