"""Where the shipped TOML folders are: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

from autocomp.errors import UnknownNameError


def folder(name: str) -> Path:
    """Folder ``search_spaces`` or ``hw_profiles``."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_shipped" / name
    return inside if inside.is_dir() else package.parent / name


def names(folder_name: str) -> list[str]:
    """Names of the TOML files in a shipped folder."""
    return sorted(p.stem for p in folder(folder_name).glob("*.toml"))


def resolve(folder_name: str, kind: str, name: str) -> Path:
    """Path of a shipped name or of a TOML file; :class:`UnknownNameError` with the nearest names."""
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path
    if name not in names(folder_name):
        raise UnknownNameError(kind, name, names(folder_name))
    return folder(folder_name) / f"{name}.toml"
