"""Muon against torch's own, on what both take, and what is its alone: filters, AdamW beside it, overflows."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from image_classifier.core import config
from image_classifier.model import numerics
from image_classifier.training.layers import head_parameters
from image_classifier.training.muon import Muon, hidden_weights, orthogonal
from image_classifier.training.schedule import build_optimizer
from tests.helpers.architectures import TINY
from tests.training.test_finetuning import make_trainer


def group(parameters, is_hidden: bool) -> dict:
    return {"params": list(parameters), "is_hidden": is_hidden, "lr": 0.01, "weight_decay": 0.1}


@pytest.mark.parametrize("shape", [(32, 300), (300, 32), (1, 9), (64, 65)])
def test_a_step_is_the_nearest_orthogonal_matrix(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonal(matrix) @ right.T  # diagonal, and 1 all along it, were it exact
    torch.testing.assert_close(found, torch.diag(found.diagonal()), rtol=0, atol=1e-4)
    assert found.diagonal().max() < 1.25 and found.diagonal().median() > 0.65
    torch.testing.assert_close(orthogonal(1e4 * matrix), orthogonal(matrix), rtol=0, atol=1e-4)
    assert not orthogonal(0 * matrix).any()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = orthogonal(matrix)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, orthogonal(matrix))
    torch.testing.assert_close(rounded @ rounded.T, orthogonal(matrix) @ orthogonal(matrix).T, rtol=0, atol=0.2)


def test_matrices_take_the_steps_of_torchs_own(monkeypatch):
    # torch's own rounds to bf16 before it iterates, which these iterations enlarge: all but them is compared.
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", lambda update, *_: orthogonal(update))
    ours = nn.Sequential(nn.Linear(24, 48, bias=False), nn.Linear(48, 16, bias=False))
    theirs = copy.deepcopy(ours)
    muon = Muon([group(ours.parameters(), is_hidden=True)])
    peer = torch.optim.Muon(theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    images = torch.randn(64, 24, generator=torch.Generator().manual_seed(0))
    for network, optimizer in ((ours, muon), (theirs, peer)):
        for _ in range(4):
            optimizer.zero_grad()
            network(images).square().mean().backward()
            optimizer.step()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)


def test_filters_are_matrices_in_any_memory_format_and_the_rest_is_adamws():
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8))
    other_format, expected = copy.deepcopy(plain).to(memory_format=torch.channels_last), copy.deepcopy(plain)
    for network in (plain, other_format, expected):
        first, *rest = network.parameters()
        groups = [group([first], is_hidden=True), group(rest, is_hidden=False)]
        optimizer: torch.optim.Optimizer = Muon(groups, fused=True)
        if network is expected:
            optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1, fused=True)
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            for parameter in network.parameters():
                # In the parameter's memory format, as autograd makes it: fused steps take that for granted.
                parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(torch.randn(parameter.shape, generator=generator))
            optimizer.step()
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(plain.get_parameter(name), other_format.get_parameter(name), rtol=0, atol=1e-6)
        assert torch.equal(plain.get_parameter(name), parameter) == (name != "0.weight")


@pytest.mark.parametrize("kind", ["mobilevit", "vit", "swin"])
def test_what_muon_is_for(kind):
    network = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, **TINY[kind], num_labels=3))
    head = head_parameters(network)
    hidden = hidden_weights(network, head)
    assert hidden and not hidden & head
    shapes = {name: tuple(network.get_parameter(name).shape) for name in hidden}
    assert all(name.endswith(".weight") and len(shape) > 1 and shape[1] > 1 for name, shape in shapes.items())
    others = {name for name, p in network.named_parameters() if p.ndim > 1} - hidden - head
    left = ("cls_token", "position_embeddings", "relative_position_bias_table", "conv_3x3.convolution.weight")
    assert all(name.endswith(left) for name in others), others
    training = config.load().training.model_copy(update={"optimizer": "muon", "decay_norms_and_biases": False})
    groups = build_optimizer(network, training).param_groups
    assert sum(len(found["params"]) for found in groups) == len(list(network.parameters()))
    assert sum(len(found["params"]) for found in groups if found["is_hidden"]) == len(hidden)


def test_a_closure_is_called_once_before_the_step():
    network, seen = nn.Linear(8, 8), []
    optimizer = Muon([group([network.weight], is_hidden=True), group([network.bias], is_hidden=False)], fused=True)
    first = network.weight.detach().clone()

    def closure() -> torch.Tensor:
        seen.append(network.weight.detach().clone())
        loss = network(torch.ones(4, 8)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0 and len(seen) == 1
    assert torch.equal(seen[0], first) and not torch.equal(network.weight, first)


def test_a_gradient_that_overflows_changes_nothing():
    network = nn.Linear(8, 8)
    optimizer = Muon([group([network.weight], is_hidden=True), group([network.bias], is_hidden=False)], fused=True)
    scaler = torch.amp.GradScaler("cpu")
    before = copy.deepcopy(network.state_dict())
    for bad in (torch.inf, 1.0):
        scaler.scale(network(torch.ones(4, 8)).sum() * bad).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        for name, parameter in network.named_parameters():
            assert torch.equal(parameter, before[name]) == (bad == torch.inf)
        assert len(optimizer.state) == (0 if bad == torch.inf else 2)


def test_training_goes_on_from_a_saved_state(project, monkeypatch):
    def steps(trainer, numbers):
        images, labels = trainer.train.gather(np.arange(16)), trainer.train.labels[:16]
        return [trainer.stepper.step(images, labels, step, 64)[0].item() for step in numbers]

    bf16 = numerics.resolve("cpu", "bf16")
    settings = {"optimizer": "muon", "learning_rate": 0.005, "compute": bf16}
    whole, first, second = (make_trainer("mobilevit", **settings) for _ in range(3))
    products: list[torch.Tensor] = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *given, **named: products.append(addmm(*given, **named)) or products[-1])
    losses = steps(whole, range(6))
    assert {product.dtype for product in products} == {torch.bfloat16}
    assert losses[-1] < losses[0]
    steps(first, range(3))
    second.stepper.load_state_dict(copy.deepcopy(first.stepper.state_dict()))
    assert steps(second, range(3, 6)) == losses[3:]
