"""Graphics cards of this machine, as its system lists them, and the execution provider that computes on each."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Maker = Literal["NVIDIA", "AMD", "Intel", "Apple"]

_MAKERS: dict[Maker, str] = {
    "NVIDIA": r"nvidia|geforce|quadro|10de",
    "AMD": r"\bamd\b|radeon|advanced micro devices|\bati\b|1002",
    "Intel": r"\bintel\b|8086",
    "Apple": r"\bapple\b",
}
"""Words and PCI numbers that name a maker."""

_DISPLAY = "03"
"""First digits of the PCI class of graphics cards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A graphics card."""

    maker: Maker
    """Who made its chip."""
    name: str
    """Its name."""


def find_cards() -> list[Card]:
    """List the graphics cards of this machine; those that only display, as of a virtual machine, are left out."""
    if sys.platform == "win32":
        query = "Get-CimInstance Win32_VideoController | Select-Object -ExpandProperty Name"
        return parse_names(_output("powershell", "-NoProfile", "-Command", query))
    if sys.platform == "darwin":
        return parse_system_profiler(_output("system_profiler", "SPDisplaysDataType", "-json"))
    return parse_lspci(_output("lspci", "-mm", "-nn")) or read_pci(Path("/sys/bus/pci/devices"))


def parse_names(text: str) -> list[Card]:
    """Read the names of cards, one a line, as Windows lists them."""
    return [card for line in text.splitlines() if (card := _card(line.strip())) is not None]


def parse_system_profiler(text: str) -> list[Card]:
    """Read what `system_profiler SPDisplaysDataType -json` prints on macOS."""
    try:
        listed = json.loads(text)["SPDisplaysDataType"]
        found = [_card(one["sppci_model"], one.get("spdisplays_vendor", "").replace("_", " ")) for one in listed]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return [card for card in found if card is not None]


def parse_lspci(text: str) -> list[Card]:
    """Read what `lspci -mm -nn` prints on Linux."""
    cards = []
    for line in text.splitlines():
        try:
            _, kind, maker, device, *_ = shlex.split(line)
        except ValueError:  # too few fields, or a quotation mark without its partner
            continue
        if f"[{_DISPLAY}" not in kind:
            continue
        device = re.sub(r" ?\[[0-9a-f]{4}\]$", "", device)
        marketed = re.search(r"\[([^]]+)\]$", device)
        card = _card(marketed[1] if marketed else device, maker)
        cards += [] if card is None else [card]
    return cards


def read_pci(folder: Path) -> list[Card]:
    """Read Linux's list of PCI devices, which holds numbers in place of names."""
    cards = []
    for device in sorted(folder.glob("*")):
        try:
            kind, maker, number = ((device / name).read_text().strip() for name in ("class", "vendor", "device"))
        except OSError:
            continue
        if kind.startswith(f"0x{_DISPLAY}"):
            card = _card(f"device {number.removeprefix('0x')}", maker.removeprefix("0x"))
            cards += [] if card is None else [card]
    return cards


def provider_for(card: Card) -> str | None:
    """Return the execution provider of onnxruntime that computes on a card; None where torch does, by CUDA."""
    if card.maker == "Apple" or sys.platform == "darwin":
        return "coreml"
    return {"AMD": "webgpu", "Intel": "openvino"}.get(card.maker)


def _card(name: str, maker: str = "") -> Card | None:
    """Return the card of this name, and of the maker that `maker` or the name itself names; None for none of them."""
    for text in (maker, name):
        for known, words in _MAKERS.items():
            if re.search(words, text, re.IGNORECASE):
                return Card(maker=known, name=name if known.lower() in name.lower() else f"{known} {name}")
    return None


def _output(*command: str) -> str:
    """Return what a program prints; nothing if it is missing, fails or takes too long."""
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.decode(errors="replace") if run.returncode == 0 else ""
