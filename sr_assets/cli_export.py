"""The command of `srd` about exported files: building a TensorRT engine.

The files themselves are made by `srd build` (`assets/export.py`).
"""

from __future__ import annotations

from pathlib import Path

import click

from sr_assets.lineage.stage import StageError


def add_commands(group: click.Group) -> None:
    """Adds the command to the `srd` group."""
    group.add_command(build_engine)


@click.command("build-engine")
@click.argument("file", metavar="FILE.onnx", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="FILE.engine when left out.")
@click.option(
    "--profile", type=click.Path(path_type=Path),
    help='JSON of shapes: {"input": {"min": [1, 3, 64, 64], "opt": ..., "max": ...}}.',
)  # fmt: skip
@click.option("--check", is_flag=True, help="Only say whether TensorRT would take the file.")
def build_engine(file: Path, output: Path | None, profile: Path | None, check: bool) -> None:
    """Builds the TensorRT engine of FILE.onnx for the GPU of this machine.

    The file's own profile of sizes is taken, or the usual one. An engine runs on this kind of GPU
    and this version of TensorRT alone. Example: srd build-engine student_x4_trt-fp16.onnx
    """
    from sr_models.export import tensorrt

    for given in (file, profile):
        if given is not None and not given.is_file():
            raise StageError(f"there is no file {given}")
    try:
        shapes = None if profile is None else tensorrt.read_profile(profile.read_text("utf-8"))
        if check:
            found = tensorrt.lint(file.read_bytes())
            if found:
                raise StageError(f"{file.name}: {'; '.join(found)}")
            click.echo(f"{file.name}: nothing that TensorRT would refuse")
            return
        target = output or file.with_suffix(".engine")
        built = tensorrt.build_engine(file, target, shapes)
    except (tensorrt.TensorRTError, ValueError) as error:
        raise StageError(str(error)) from error
    except ImportError as error:
        raise StageError(f"{error}: pip install 'sr-distillery[export]'") from error
    click.echo(f"{target}: for {tensorrt.profile_json(built)}")
