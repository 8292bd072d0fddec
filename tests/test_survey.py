"""The survey of all architectures, on four small ones; the whole of it is run by hand."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from conftest import REPOSITORY, need

SMALL = ["torchvision:squeezenet1_1", "timm:test_vit3", "timm:test_convnext2", "timm:test_efficientnet_gn"]


@pytest.fixture(scope="module")
def survey():
    need("timm")
    spec = importlib.util.spec_from_file_location("survey_backbones", REPOSITORY / "scripts" / "survey_backbones.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("survey_backbones", None)


def test_small_architectures_are_right_and_the_table_resumes(survey, tmp_path, monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(
        survey, "run_guarded", lambda name, **_: tried.append(name) or {**survey.try_one(name), "seconds": 0.0}
    )
    limits = {"minutes": 10, "gigabytes": 8, "seconds": 60}
    survey.survey(SMALL[:2], tmp_path / "s.csv", **limits)
    survey.survey(SMALL, tmp_path / "s.csv", **limits)
    assert sorted(tried) == sorted(SMALL)
    summary = survey.summarise(survey.read_rows(tmp_path / "s.csv"), len(SMALL))
    assert summary["default tap resolved"] == summary["classifier input the same"] == len(SMALL)
    assert summary["wrong classifier inputs"] == 0
    assert summary["with suggested stages"] == summary["with suggested blocks"] == len(SMALL)
    assert "same" in capsys.readouterr().out


def test_a_network_beyond_the_limits_is_a_row_too(survey):
    assert survey.run_guarded("timm:test_vit3", gigabytes=8, seconds=0.01)["status"] == "too slow"
    assert survey.run_guarded("timm:no_such_network", gigabytes=8, seconds=60)["status"] == "failed"


def test_smallest_first(survey):
    names = ["timm:vit_giant_patch14_224", "timm:vit_tiny_patch16_224", "timm:resnet50", "timm:convnext_atto"]
    assert survey.by_size(names) == [names[3], names[1], names[2], names[0]]
