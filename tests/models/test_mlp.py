"""The pack against plain torch modules, and the optimizers on it against torch.optim."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stagetree.models.layers import ACTIVATIONS
from stagetree.models.losses import loss_gradient, loss_sums
from stagetree.models.mlp import Pack, initial_state, sequential
from stagetree.models.optimizers import CLASSES, PackOptimizer

MODEL = {"hidden_sizes": [6, 5], "activation": "tanh", "dropout": 0.0}
# A batched product and a plain one add in another order: equal but for rounding.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def plain(seed, model=MODEL):
    module = sequential(7, n_classes=4, **model)
    module.load_state_dict(initial_state(seed, 7, 4, model))
    return module


def batches(n=5):
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        yield torch.randn(8, 7, generator=generator), torch.randint(0, 4, (8,), generator=generator)


def gradients(pack, x, y, loss, lr=None):
    """A step's way forward and back, all members on the same images."""
    tape = []
    logits = pack.forward(x.expand(len(pack), -1, -1), tape=tape)
    _, _, grad = loss_gradient(logits, y.expand(len(pack), -1), loss)
    return pack.backward(tape, grad, lr)


def test_initial_weights_are_those_of_plain_layers_after_manual_seed():
    torch.manual_seed(3)
    expected = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).state_dict()
    before = torch.get_rng_state()
    state = initial_state(3, 7, 4, MODEL)
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [[], [6], [6, 5]])
def test_a_pack_gives_the_logits_of_plain_modules(activation, hidden_sizes):
    model = {"hidden_sizes": hidden_sizes, "activation": activation, "dropout": 0.0}
    pack = Pack([initial_state(seed, 7, 4, model) for seed in (0, 1)], activation=activation, dropout=0.0)
    x, _ = next(batches())
    logits = pack.forward(x.expand(2, -1, -1))
    for k in (0, 1):
        torch.testing.assert_close(logits[k], plain(k, model)(x), **CLOSE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_going_back_gives_the_bits_of_autograd(activation, dropout):
    model = {"hidden_sizes": [6, 5], "activation": activation, "dropout": dropout}
    pack = Pack([initial_state(seed, 7, 4, model) for seed in (0, 1)], activation=activation, dropout=dropout)
    x, y = next(batches())
    x, y = x.expand(2, -1, -1), y.expand(2, -1)
    masks = pack.masks(x.shape[1], [torch.Generator().manual_seed(k) for k in (0, 1)])
    loss, tape = {"name": "cross_entropy", "class_weights": []}, []
    _, _, grad = loss_gradient(pack.forward(x, masks=masks, tape=tape), y, loss)
    own = pack.backward(tape, grad)
    for parameter in pack.parameters:
        parameter.requires_grad_()
    total, weight = loss_sums(pack.forward(x, masks=masks), y, loss)
    expected = torch.autograd.grad((total / weight).sum(), pack.parameters)
    assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))


@pytest.mark.parametrize(("n_in", "n_out"), [(16, 6), (6, 5), (5, 3), (64, 64), (300, 10), (784, 300)])
@pytest.mark.parametrize("b", [1, 7, 10, 16, 32, 50])
def test_a_members_products_have_the_same_bits_in_packs_of_any_size(n_in, n_out, b):
    """MKL keeps to that on AMD processors only if it is told to, which the package does."""
    generator = torch.Generator().manual_seed(0)
    shapes = (b, n_in), (n_in, n_out), (1, n_out), (b, n_out)
    x, weight, bias, grad = (torch.randn(17, *shape, generator=generator) for shape in shapes)

    def products(members):
        rows, back = x[members], grad[members]
        own, columns = weight[members], rows.transpose(1, 2)
        forward, below = torch.baddbmm(bias[members], rows, own), torch.bmm(back, own.transpose(1, 2))
        return [forward, below, torch.bmm(columns, back), own.clone().baddbmm_(columns, back, alpha=-1)]

    alone = [products(slice(k, k + 1)) for k in range(17)]
    for size in (2, 3, 4, 8, 17):
        for name, together in enumerate(products(slice(0, size))):
            assert all(torch.equal(together[k], alone[k][name][0]) for k in range(size)), (size, name)


def test_a_state_survives_its_way_through_a_pack_whatever_the_order_of_its_names():
    state = initial_state(0, 7, 4, MODEL)
    copy = Pack([dict(reversed(state.items()))], activation="tanh", dropout=0.0).state(0)
    assert copy.keys() == state.keys()
    assert all(torch.equal(copy[name], state[name]) and copy[name].is_contiguous() for name in state)


@pytest.mark.parametrize("name", CLASSES)
def test_an_optimizer_on_a_pack_does_what_torch_optim_does(name):
    """Members differ in learning rate and weight decay; the general path for all, the folded one for plain SGD too."""
    seeds, lrs, decays = (0, 1, 2), (0.1, 0.01, 0.003), (0.0, 0.1, 0.0)
    pack = Pack([initial_state(seed, 7, 4, MODEL) for seed in seeds], activation="tanh", dropout=0.0)
    settings = [{"name": name, "weight_decay": decay} for decay in decays]
    optimizer = PackOptimizer(pack.parameters, settings, lrs)
    for x, y in batches():
        optimizer.step(gradients(pack, x, y, {"name": "nll", "class_weights": []}))
    for k, (seed, lr, decay) in enumerate(zip(seeds, lrs, decays, strict=True)):
        module = plain(seed)
        reference = CLASSES[name](module.parameters(), lr=lr, weight_decay=decay)
        for x, y in batches():
            reference.zero_grad()
            F.cross_entropy(module(x), y).backward()
            reference.step()
        state = pack.state(k)
        for key, value in module.state_dict().items():
            # adaptive steps divide by the gradient's size, which magnifies rounding where it is near 0
            torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-5)


def test_the_folded_update_is_plain_sgd():
    pack = Pack([initial_state(seed, 7, 4, MODEL) for seed in (0, 1)], activation="tanh", dropout=0.0)
    lr = torch.tensor([0.1, 0.02])[:, None, None]
    for x, y in batches():
        gradients(pack, x, y, {"name": "cross_entropy", "class_weights": []}, lr)
    for k, member_lr in enumerate((0.1, 0.02)):
        module = plain(k)
        reference = torch.optim.SGD(module.parameters(), lr=member_lr)
        for x, y in batches():
            reference.zero_grad()
            F.cross_entropy(module(x), y).backward()
            reference.step()
        for key, value in module.state_dict().items():
            torch.testing.assert_close(pack.state(k)[key], value, **CLOSE)


@pytest.mark.parametrize(("name", "seed"), list(product(CLASSES, [0, 1])))
def test_optimizer_state_survives_saving_and_loading(name, seed):
    """Steps, save, load into another optimizer, a step: the bits of no interruption."""

    def step(pack, optimizer, x, y):
        optimizer.step(gradients(pack, x, y, {"name": "mse"}))

    settings = [{"name": name} | ({"momentum": 0.9} if name in ("sgd", "rmsprop") else {})]
    pack = Pack([initial_state(seed, 7, 4, MODEL)], activation="tanh", dropout=0.0)
    optimizer = PackOptimizer(pack.parameters, settings, [0.01])
    *first, last = batches()
    for x, y in first:
        step(pack, optimizer, x, y)
    copy = Pack([pack.state(0)], activation="tanh", dropout=0.0)
    resumed = PackOptimizer(copy.parameters, settings, [0.01])
    resumed.load(0, optimizer.state(0))
    step(pack, optimizer, *last)
    step(copy, resumed, *last)
    assert all(torch.equal(a, b) for a, b in zip(pack.parameters, copy.parameters, strict=True))


def test_dropout_masks_follow_the_generators_and_keep_the_mean():
    wide = {**MODEL, "hidden_sizes": [4000]}
    pack = Pack([initial_state(0, 7, 4, wide)] * 3, activation="tanh", dropout=0.25)
    shared, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    (mask,) = pack.masks(8, [shared, own, shared])
    assert torch.equal(mask[0], mask[2])
    assert not torch.equal(mask[0], mask[1])
    assert sorted(set(mask.flatten().tolist())) == [0.0, pytest.approx(1 / 0.75)]
    assert mask.mean().item() == pytest.approx(1, abs=0.01)
    x = torch.randn(3, 8, 7)
    assert torch.equal(pack.forward(x), pack.forward(x))  # no masks: evaluation
