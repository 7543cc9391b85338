"""Training from a configuration: Lightning's command line over our data module and task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jsonargparse import ArgumentError
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from metanet_tasks.callbacks import EpochProgress
from metanet_tasks.classification import INRClassification
from metanet_tasks.configs import find_config
from metanet_tasks.datamodule import ZooDataModule
from metanet_tasks.training import CONFIG, TRAINER_DEFAULTS, TrainingResult, quiet, run, run_callbacks
from metanet_zoo.atomic import atomic_path


class TrainCLI(LightningCLI):
    """Our data module and task under Lightning's parser; the model learns spec and labels from the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what follows from the data: it is no setting of its own."""
        for name in ("spec_json", "label_names", "canonical"):
            target = "model.spec" if name == "spec_json" else f"model.{name}"
            parser.link_arguments(f"data.{name}", target, apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse exactly the arguments given."""
        assert isinstance(args, list)
        self.config = parser.parse_args(args)


def train(
    config: str | Path | Sequence[str | Path],
    settings: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: bool | str | Path = False,
) -> TrainingResult:
    """Train from a configuration, as ``metanet train`` does.

    Args:
        config: YAML files, or names of shipped ones; later ones override earlier ones.
        settings: further settings as on the command line, e.g. ``["--data.zoo", "my.zoo"]``.
        out: folder of the run; ``runs/NAME`` of the last configuration by default.
        resume: True continues the run in ``out``; a path continues that checkpoint.

    Returns:
        The trained model and its figures; the resolved configuration lies in ``out`` as ``config.yaml``.

    Raises:
        ValueError: a setting that does not exist or cannot be, and everything that `run` raises.
    """
    quiet()
    names = [config] if isinstance(config, (str, Path)) else list(config)
    files = [find_config(str(name)) for name in names]
    folder = Path(out) if out is not None else Path("runs") / (files[-1].stem if files else "train")
    arguments = [argument for file in files for argument in ("--config", str(file))]
    cli = build_cli([*arguments, *settings], folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = cli.parser.dump(cli.config, skip_unset=False)
    if resume is False or not (folder / CONFIG).exists():
        with atomic_path(folder / CONFIG) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return run(cli.trainer, cli.model, cli.datamodule, folder, resume)


def build_cli(arguments: Sequence[str], out: Path) -> TrainCLI:
    """Parse arguments and build data, model and trainer.

    Raises:
        ValueError: an argument is unknown or has a value of the wrong kind.
    """

    defaults = {
        **TRAINER_DEFAULTS,
        "default_root_dir": str(out),
        "callbacks": [*run_callbacks(out), EpochProgress()],
    }
    try:
        return TrainCLI(
            INRClassification,
            ZooDataModule,
            save_config_callback=None,
            trainer_defaults=defaults,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "prog": "metanet train"},
            args=list(arguments),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except ArgumentError as error:
        raise ValueError(str(error)) from None


def print_settings() -> None:
    """Print every setting with its type and default."""
    with suppress(SystemExit):
        build_cli(["--help"], Path("runs/train"))
