"""The directive ``notebook``: the cells of a notebook, with what they show, as a part of a page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Notebook(SphinxDirective):
    """``notebook``: takes the path of a notebook, relative to the page.

    Its first heading is left out, since the page has one.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Put the cells into the page, one after the other."""
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        return [node for cell in cells for node in self._cell(cell)]

    def _cell(self, cell: dict[str, Any]) -> list[nodes.Node]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = "\n".join(line for line in source.split("\n") if not line.startswith("# "))
            return self.parse_text_to_nodes(text)
        block = nodes.literal_block(source, source, language="python")
        return [block, *(_output(output) for output in cell["outputs"])]


def _output(output: dict[str, Any]) -> nodes.Node:
    """A picture, or text as it was printed."""
    data = output.get("data", {})
    if "image/jpeg" in data:
        link = f"data:image/jpeg;base64,{data['image/jpeg']}"
        html = f'<p><img src="{link}" alt="What the cell above shows"></p>'
    else:
        text = "".join(output.get("text", data.get("text/plain", ())))
        html = f'<pre class="notebook-output">{escape(text)}</pre>'
    return nodes.raw("", html, format="html")


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive to a build."""
    app.add_directive("notebook", Notebook)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
