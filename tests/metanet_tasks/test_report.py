from __future__ import annotations

import io
import re
from base64 import b64decode
from pathlib import Path

import pytest
import torch
from PIL import Image

from metanet_tasks import figures
from metanet_tasks.report import Report


def test_a_report_is_one_file_that_escapes_what_it_is_told(tmp_path: Path) -> None:
    report = Report("a < b")
    report.heading("x & y")
    report.paragraph("<script>alert(1)</script>", note=True)
    report.table(["name", "value"], [["<i>", "1.5"], ["b", ""]], best=0)
    report.code("h1: 32 <sign>")
    report.figure(figures.psnr_histogram(torch.randn(50)), "a picture")
    report.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "<i>" not in text
    assert "<title>a &lt; b</title>" in text
    assert 'src="http' not in text
    assert "<td class=number>1.5</td>" in text
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert Image.open(io.BytesIO(b64decode(data))).format == "PNG"


@pytest.mark.parametrize(
    "image",
    [
        lambda: figures.confusion(torch.randint(9, (4, 4)), ["a", "b", "c", "d"]),
        lambda: figures.confusion(torch.eye(40, dtype=torch.long), [f"class {i}" for i in range(40)]),
        lambda: figures.picture_rows(
            {"a": [*torch.rand(3, 5, 7)], "b": [*torch.rand(3, 9, 9)]}, ["x", "y", "z"]
        ),
        lambda: figures.picture_rows({"colour": [torch.rand(5, 7, 3)]}, ["x"]),
        lambda: figures.learning_curve({"a": [{"epoch": 0, "val/accuracy": 0.5}], "b": []}, 0.1),
        lambda: figures.psnr_histogram(torch.tensor([30.0, 36.0, float("nan")])),
    ],
)
def test_figures_are_pictures_that_are_not_blank(image: object) -> None:
    assert callable(image)
    picture = Image.open(io.BytesIO(image()))
    assert min(picture.size) > 100
    low, high = picture.convert("L").getextrema()
    assert low != high
