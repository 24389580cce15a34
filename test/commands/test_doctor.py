"""``catekv doctor``: what it says, and when it says that something does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architectures import any_model

from catekv import HeadMask
from catekv.commands import cli, doctor_findings, doctor_report
from catekv.kernels import dispatch
from catekv.models.embedded import path as embedded_path
from catekv.models.shape import config_hash

MASKS = Path(__file__).resolve().parents[2] / "select_headmask" / "embedded" / "chosen"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor_report.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def refused(findings: doctor_findings.Findings) -> dict[str, str]:
    return {check.name: check.reason for check in findings.checks if not check.fits}


def test_every_kernel_is_named_with_the_backend_that_runs() -> None:
    facts = doctor_report.examine().facts["kernels"]
    assert set(dispatch.table()) <= set(facts)
    if not torch.cuda.is_available():
        assert facts["ragged_decode"] == "torch (triton runs on GPUs)"
        assert not [kernel for kernel, fact in facts.items() if fact.startswith("triton (CUDA")]
    assert facts["column_sums"].startswith("torch (torch is its only form")


def test_the_variable_that_forces_a_backend_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    facts = doctor_report.examine().facts["kernels"]
    assert facts["ragged_decode"] == "reference (CATEKV_KERNELS=reference)"
    assert "which this kernel does not have" in facts["append"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="triton runs where there is a GPU")
def test_a_backend_that_cannot_run_here_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    findings = doctor_report.examine()
    assert "cannot run here" in refused(findings)[dispatch.VARIABLE]
    assert not findings.fits


def test_only_known_variables_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "a-secret" not in text
    assert "OMP_NUM_THREADS" in text


def test_a_data_folder_that_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATEKV_DATA", "absent-folder")
    assert "absent-folder is no folder" in refused(doctor_report.examine())["CATEKV_DATA"]


def test_the_embedded_model_and_its_mask_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "--model", str(embedded_path()), "--mask", str(MASKS), "--json"]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert {check["name"]: check["fits"] for check in found["checks"]} == {
        "attention": True,
        "model in memory": True,
        "mask": True,
    }
    assert found["facts"]["model"]["shape"] == "4 layers, 8 query heads, 4 KV heads of 32"
    assert found["facts"]["model"]["window"] == "8192 tokens"


def test_a_mask_of_another_shape_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    HeadMask.random((2, 4), 0.5).save(tmp_path)
    assert cli.main(["doctor", "--model", str(embedded_path()), "--mask", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "DOES NOT FIT: the head mask has 2 layers x 4 KV heads but the model has 4" in text


def test_a_mask_of_another_model_of_the_same_shape_does_not_fit(tmp_path: Path) -> None:
    mask = HeadMask.random((4, 4), 0.5)
    HeadMask(mask.adaptive, {**mask.meta, "model": "other", "config_hash": "abc"}).save(tmp_path)
    findings = doctor_report.examine(str(embedded_path()), str(tmp_path))
    assert "made for configuration abc (other)" in refused(findings)["mask"]


def test_a_model_that_cannot_be_compressed_is_named_with_the_reason(tmp_path: Path) -> None:
    from transformers import BloomConfig

    config = BloomConfig(n_layer=2, n_head=2, hidden_size=32, vocab_size=50)
    config.save_pretrained(tmp_path)
    findings = doctor_report.examine(str(tmp_path))
    assert "computes attention in code of its own" in refused(findings)["attention"]
    assert findings.facts["model"]["configuration"] == config_hash(config)


def test_experts_and_layers_without_a_kv_cache_can_be_examined(tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "qwen3_next",
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=50,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        dtype="float32",
    )
    config.save_pretrained(tmp_path)
    findings = doctor_report.examine(str(tmp_path))
    assert "attention" not in refused(findings)
    assert "1 linear attention" in findings.facts["model"]["sliding window"]


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("jamba", "2 of 4 layers are not full attention, 2 linear attention"),
        ("mistral-window", "3 of 3 layers are not full attention, 3 sliding window"),
        ("llama", "0 of 3 layers are not full attention"),
    ],
)
def test_layers_are_counted_where_the_configuration_does_not_list_them(
    family: str, kinds: str, tmp_path: Path
) -> None:
    any_model(family).config.save_pretrained(tmp_path)
    findings = doctor_report.examine(str(tmp_path))
    assert findings.facts["model"]["sliding window"].endswith(kinds)
    assert ("attention" in refused(findings)) == kinds.startswith("3")


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    reason = refused(doctor_report.examine(str(tmp_path)))["model"]
    assert "\n" not in reason
    assert "no readable configuration" in reason


def test_torn_weights_are_told_by_their_header(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((embedded_path() / name).read_bytes())
    assert doctor_report.examine(str(tmp_path)).fits
    weights = tmp_path / "model.safetensors"
    for kept in (100_000, 100, 0):
        weights.write_bytes(weights.read_bytes()[:kept])
        findings = doctor_report.examine(str(tmp_path))
        assert str(weights) in refused(findings)["model files"]
