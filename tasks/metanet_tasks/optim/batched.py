"""Several trainings of one task as one batch: rates, schedules and seeds stand on a leading dimension.

The networks' parameters are slices of stacked tensors. One forward and one backward pass serve all of them;
every network keeps an optimizer of its own, the very one that a single run has.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metanet_tasks.optim.harness import Setting, Training, outcome
from metanet_tasks.optim.tasks import Task, loss_of


def run_batch(task: Task, settings: Sequence[Setting], folder: Path) -> list[dict[str, Any]]:
    """Train a network per setting, all at once.

    Args:
        task: of all settings; its networks must run under `torch.func.vmap`.
        settings: of one number of steps.
        folder: of the data.

    Returns:
        What `metanet_tasks.optim.harness.run` returns, by setting; ``seconds`` are those of the batch divided
        by the number of settings, which stands under ``batch``.

    Raises:
        ValueError: settings of several tasks or lengths.
    """
    if len({(setting.task, setting.steps) for setting in settings}) != 1:
        raise ValueError("the settings of one batch must have one task and one number of steps")
    data = task.data(folder)
    inputs, targets = data.train
    trainings = [Training(task, setting, inputs[:2]) for setting in settings]
    models = [training.model for training in trainings]
    stacked, _ = torch.func.stack_module_state(models)
    for i, model in enumerate(models):
        for name, parameter in model.named_parameters():
            parameter.data = stacked[name][i].data
    base = copy.deepcopy(models[0]).to("meta")

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_of(lambda given: torch.func.functional_call(base, parameters, (given,)), x, y)

    losses_of = torch.func.vmap(loss)
    steps = settings[0].steps
    curves = torch.full((len(settings), steps), math.inf)
    alive = list(range(len(settings)))
    start = time.perf_counter()
    for step in range(steps):
        chosen = torch.stack([training.draw(len(inputs)) for training in trainings])
        for tensor in stacked.values():
            tensor.grad = None
        found = losses_of(stacked, inputs[chosen], targets[chosen])
        found.sum().backward()  # no loss depends on another network
        gradients = {name: tensor.grad.unbind(0) for name, tensor in stacked.items()}
        for i in alive:
            for name, parameter in models[i].named_parameters():
                parameter.grad = gradients[name][i]
            trainings[i].step()
        values = found.detach()
        alive = [i for i in alive if trainings[i].sound(float(values[i]))]
        curves[alive, step] = values[alive].float()
        if not alive:
            break
    seconds = (time.perf_counter() - start) / len(settings)
    for i, model in enumerate(models):
        trainings[i].finish()
        for name, parameter in model.named_parameters():
            if parameter.data_ptr() != stacked[name][i].data_ptr():
                raise RuntimeError(f"{settings[i].optimizer} moved {name} out of the batch; run it alone")
    return [
        {**outcome(curve, model, data, seconds), "batch": len(settings)}
        for curve, model in zip(curves, models, strict=True)
    ]
