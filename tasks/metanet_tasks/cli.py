"""The command line: one dict from verb to function, each verb in its own file.

Nothing heavy is imported here or by the files of the verbs; each verb imports what it needs when it runs, so
that ``metanet --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from metanet_tasks import (
    barrier_command,
    classify_command,
    demo_command,
    extract_lora_command,
    inspect_command,
    match_command,
    merge_command,
    optim_command,
    train_command,
    zoo_command,
)


class Command(NamedTuple):
    """A verb: what runs it on the arguments behind it, returning the exit code, and one line about it."""

    run: Callable[[Sequence[str]], int]
    summary: str
    after_interrupt: str = ""


AGAIN = "; the same command continues"
RESUME = "; the same command with --resume continues"

COMMANDS: dict[str, Command] = {
    "inspect": Command(inspect_command.main, "show the symmetry of a network or checkpoint, and prove it"),
    "zoo": Command(zoo_command.main, "fit networks to images; describe, check and merge zoos", AGAIN),
    "train": Command(train_command.main, "train a metanetwork on a zoo, from a YAML configuration", RESUME),
    "classify": Command(classify_command.main, "say what networks show, from their weights alone"),
    "match": Command(match_command.main, "align a checkpoint to another one, keeping its function"),
    "barrier": Command(barrier_command.main, "the loss along the path between two checkpoints"),
    "merge": Command(merge_command.main, "merge checkpoints: averages, task vectors, recipes", RESUME),
    "extract-lora": Command(extract_lora_command.main, "write a fine-tuned model as an adapter of its base"),
    "optim": Command(optim_command.main, "learned optimizers: list, describe and compare them", AGAIN),
    "demo": Command(demo_command.main, "the whole path on embedded images, with a report", AGAIN),
}

USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError)
"""What bad input raises: one line for the user. Anything else is a bug of ours and shows its traceback."""

USAGE = """\
usage: metanet [--help] [--version] [--traceback] VERB ...

Weight-space metanetworks: the symmetry of a network, derived, proven and used.

verbs:
{verbs}

options:
  --help        show this, or the help of a verb: metanet VERB --help
  --version     show the version
  --traceback   on an error, show where in the code it arose

examples:
  metanet demo
  metanet inspect model.safetensors
  metanet inspect torchvision.models:resnet18 --input 'f32[1,3,64,64]' --verify
  metanet zoo fit-inrs --images mnist/train-images-idx3-ubyte.gz --out mnist.zoo --limit 1000
  metanet classify mnist.zoo --model runs/mnist
  metanet merge chat code --base base --method ties --set density=0.5 -o merged
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: as on the command line; None takes the process's own.

    Returns:
        the exit code: 0 done, 1 done with a negative answer (a proof or a check failed), 2 bad input,
        130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in given
    given = [argument for argument in given if argument != "--traceback"]
    if not given or given[0] in ("--help", "-h", "help"):
        print(usage(), end="")
        return 0
    if given[0] == "--version":
        from metanet import __version__

        print(f"metanet {__version__}")
        return 0
    command = COMMANDS.get(given[0])
    if command is None:
        print(f"metanet: error: no verb {given[0]!r}; the verbs are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return command.run(given[1:])
    except BrokenPipeError:
        # The reader of our output (head, less) has left; keep Python from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"metanet: interrupted{command.after_interrupt}", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        if show_traceback:
            traceback.print_exc()
        print(f"metanet: error: {error_text(error)}", file=sys.stderr)
        return 2


def usage() -> str:
    """Return the help of the command line as a whole."""
    width = max(map(len, COMMANDS))
    return USAGE.format(verbs="\n".join(f"  {name:<{width}}   {c.summary}" for name, c in COMMANDS.items()))


def error_text(error: BaseException) -> str:
    """Return an error's message as one line; the kind is added where the message alone says too little."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    line = " ".join(text.split())
    return line if " " in line else f"{type(error).__name__}: {line}".rstrip(": ")


if __name__ == "__main__":
    sys.exit(main())
