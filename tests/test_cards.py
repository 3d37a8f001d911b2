"""Graphics cards in what Linux, Windows and macOS print, and what the doctor makes of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vsfmanet import cards, doctor
from vsfmanet.cards import Card, find_cards, parse_lspci, parse_names, parse_system_profiler, provider_for, read_pci
from vsfmanet.engines import onnx

LSPCI = """\
00:00.0 "Host bridge [0600]" "Intel Corporation [8086]" "Device [a700]" -r01 "" ""
00:02.0 "VGA compatible controller [0300]" "Intel Corporation [8086]" "Raptor Lake-S GT1 [UHD Graphics 770] [a780]" -r04 "ASUSTeK Computer Inc. [1043]" "Device [8882]"
01:00.0 "VGA compatible controller [0300]" "NVIDIA Corporation [10de]" "AD102 [GeForce RTX 4090] [2684]" -ra1 "Gigabyte [1458]" "Device [40bf]"
01:00.1 "Audio device [0403]" "NVIDIA Corporation [10de]" "AD102 High Definition Audio Controller [22ba]" -ra1 "Gigabyte [1458]" "Device [40bf]"
03:00.0 "VGA compatible controller [0300]" "Advanced Micro Devices, Inc. [AMD/ATI] [1002]" "Navi 31 [Radeon RX 7900 XT/7900 XTX/7900M] [744c]" -rc8 "Sapphire [1da2]" "Device [e471]"
04:00.0 "Display controller [0380]" "Intel Corporation [8086]" "DG2 [Arc A770] [56a0]" -r08 "" ""
05:00.0 "3D controller [0302]" "NVIDIA Corporation [10de]" "GH100 [H100 PCIe] [2331]" -ra1 "" ""
00:01.0 "VGA compatible controller [0300]" "Red Hat, Inc. [1af4]" "Virtio 1.0 GPU [1050]" -r01 "" ""
06:00.0 "VGA compatible controller [0300]" "ASPEED Technology, Inc. [1a03]" "ASPEED Graphics Family [2000]
"""  # noqa: E501 (as it is printed)

WINDOWS = """\
NVIDIA GeForce RTX 3060 Laptop GPU\r
AMD Radeon(TM) Graphics\r
Intel(R) Arc(TM) A380 Graphics\r
Microsoft Basic Display Adapter\r
Parsec Virtual Display Adapter\r
\r
"""

MACOS = json.dumps(
    {
        "SPDisplaysDataType": [
            {"_name": "Apple M2 Pro", "spdisplays_vendor": "sppci_vendor_Apple", "sppci_model": "Apple M2 Pro"},
            {"_name": "kHW_x", "spdisplays_vendor": "sppci_vendor_amd", "sppci_model": "Radeon Pro 5500M"},
            {"_name": "kHW_y", "spdisplays_vendor": "Intel", "sppci_model": "Intel UHD Graphics 630"},
        ]
    }
)


def test_lspci_lists_the_cards_that_can_compute() -> None:
    assert parse_lspci(LSPCI) == [
        Card(maker="Intel", name="Intel UHD Graphics 770"),
        Card(maker="NVIDIA", name="NVIDIA GeForce RTX 4090"),
        Card(maker="AMD", name="AMD Radeon RX 7900 XT/7900 XTX/7900M"),
        Card(maker="Intel", name="Intel Arc A770"),
        Card(maker="NVIDIA", name="NVIDIA H100 PCIe"),
    ]


def test_windows_lists_the_cards_that_can_compute() -> None:
    assert parse_names(WINDOWS) == [
        Card(maker="NVIDIA", name="NVIDIA GeForce RTX 3060 Laptop GPU"),
        Card(maker="AMD", name="AMD Radeon(TM) Graphics"),
        Card(maker="Intel", name="Intel(R) Arc(TM) A380 Graphics"),
    ]


def test_macos_lists_the_cards_that_can_compute() -> None:
    assert parse_system_profiler(MACOS) == [
        Card(maker="Apple", name="Apple M2 Pro"),
        Card(maker="AMD", name="AMD Radeon Pro 5500M"),
        Card(maker="Intel", name="Intel UHD Graphics 630"),
    ]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"SPDisplaysDataType": [{}]}', '{"SPDisplaysDataType": [3]}', "no"])
def test_what_is_not_a_list_of_cards_lists_none(text: str) -> None:
    assert parse_system_profiler(text) == parse_lspci(text) == parse_names(text) == []


def test_without_lspci_the_numbers_of_pci_devices_are_read(tmp_path: Path) -> None:
    devices = {
        "0000:01:00.0": ("0x030200", "0x10de", "0x2331"),
        "0000:02:00.0": ("0x020000", "0x8086", "0x1533"),
        "0000:03:00.0": ("0x038000", "0x1002", "0x744c"),
        "0000:04:00.0": ("0x030000", "0x1af4", "0x1050"),
    }
    for name, numbers in devices.items():
        (tmp_path / name).mkdir()
        for file, number in zip(("class", "vendor", "device"), numbers, strict=True):
            (tmp_path / name / file).write_text(f"{number}\n")
    (tmp_path / "0000:05:00.0").mkdir()
    assert read_pci(tmp_path) == [
        Card(maker="NVIDIA", name="NVIDIA device 2331"),
        Card(maker="AMD", name="AMD device 744c"),
    ]


def test_the_systems_own_program_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = {"lspci": LSPCI, "powershell": WINDOWS, "system_profiler": MACOS}
    monkeypatch.setattr(cards, "_output", lambda *command: printed[command[0]])
    counts = {"linux": 5, "win32": 3, "darwin": 3}
    for system, count in counts.items():
        monkeypatch.setattr(sys, "platform", system)
        assert len(find_cards()) == count


def test_this_machine_can_be_asked() -> None:
    assert all(card.name for card in find_cards())


def test_each_card_has_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert [provider_for(card) for card in parse_lspci(LSPCI)] == ["openvino", None, "webgpu", "openvino", None]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert {provider_for(card) for card in parse_system_profiler(MACOS)} == {"coreml"}


def test_the_doctor_names_the_command_for_each_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(doctor, "find_cards", lambda: parse_lspci(LSPCI))
    monkeypatch.setattr(doctor, "_nvidia_card", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    uhd, radeon, arc = doctor._cards()
    assert (radeon.found, radeon.exit_code) == (False, 0)
    assert radeon.detail.startswith("AMD Radeon RX 7900 XT/7900 XTX/7900M, used with --backend onnx --provider webgpu")
    assert 'pip install "vsfmanet[onnx]"; pip install onnxruntime-ep-webgpu' in radeon.remedy
    assert not arc.found  # OpenVINO is installed, but computes on the CPU here
    assert "--provider openvino" in uhd.detail
    assert "pip install onnxruntime-ep-openvino" in arc.remedy
    missing = doctor._no_cuda()
    assert missing.detail == "NVIDIA GeForce RTX 4090, but no driver of NVIDIA's"
    assert "nvidia.com" in missing.remedy
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [check.detail.partition(",")[0] for check in doctor._cards()] == [
        "Intel UHD Graphics 770", "Intel Arc A770",
    ]  # fmt: skip


def test_a_card_that_a_provider_finds_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_cards", lambda: [Card(maker="Intel", name="Intel Arc A770")])
    gpu = onnx._onnxruntime().OrtHardwareDeviceType.GPU
    monkeypatch.setattr(onnx, "pick_provider", lambda name: onnx.Picked(provider=name))
    monkeypatch.setattr(onnx, "_plugin_device", lambda module, name: SimpleNamespace(device=SimpleNamespace(type=gpu)))
    [check] = doctor._cards()
    assert check.found
    assert str(check).endswith("used with --backend onnx --provider openvino (FMA-Net++ only)")
