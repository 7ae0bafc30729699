"""The rules for CUDA, CPU and MPS, none of which but the CPU is here."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sr_models.training.devices import DevicePolicy, device_policy, find_policy, opened


def test_cuda_has_every_precision_and_fp32_is_fp32() -> None:
    exact = device_policy("cuda", "fp32")
    assert exact == DevicePolicy("cuda", "fp32", pinned=True, ahead=3, tf32=False)
    for precision in ("bf16", "fp16"):
        mixed = device_policy("cuda", precision)  # type: ignore[arg-type]
        assert (mixed.precision, mixed.tf32) == (precision, True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_others_train_in_fp32(precision: str) -> None:
    cpu = device_policy("cpu", precision)  # type: ignore[arg-type]
    assert cpu == DevicePolicy("cpu", "fp32", pinned=False, ahead=3, tf32=False)
    mps = device_policy("mps", precision)  # type: ignore[arg-type]
    assert mps == DevicePolicy("mps", "fp32", pinned=False, ahead=0, tf32=False)


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(ValueError, match="'tpu' is not one of cpu, cuda, mps"):
        device_policy("tpu", "fp32")


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_follows_the_policy_and_is_put_back(tf32: bool) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    policy = DevicePolicy("cpu", "fp32", pinned=False, ahead=3, tf32=tf32)
    with opened(policy) as accelerator:
        assert torch.backends.cuda.matmul.allow_tf32 is tf32
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert accelerator.device.type == "cpu" and accelerator.scaler is None
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_a_precision_that_is_not_there_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert find_policy("cpu", "fp16").precision == "fp32"
    assert [r.message for r in caplog.records] == [
        "precision fp16: cpu does not have it, training in fp32"
    ]


@pytest.mark.parametrize(("platform", "value"), [("darwin", "1"), ("linux", None)])
@pytest.mark.parametrize("package", ["sr_models", "sr_assets"])
def test_a_mac_is_told_of_the_fallback_before_torch(
    package: str, platform: str, value: str | None
) -> None:
    script = (
        f"import sys, os; os.environ.pop('PYTORCH_ENABLE_MPS_FALLBACK', None)\n"
        f"real, sys.platform = sys.platform, {platform!r}\n"
        f"import {package}\n"
        "sys.platform = real\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ.get('PYTORCH_ENABLE_MPS_FALLBACK'))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == str(value), found.stderr
