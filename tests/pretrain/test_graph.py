from collections.abc import Callable, Iterator

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor, distributed, nn

import pretrain.models  # noqa: F401  (registers the networks)
from pretrain import classifier, graph
from pretrain.graph import capture
from pretrain.runs.errors import UserError
from pretrain.runs.processes import ddp_settings
from pretrain.runs.train_loop import train_in_micro_batches


def in_fixed_memory(
    compute: Callable, memory: tuple[Tensor, ...], allow_unused_input: bool, capture_error_mode: str
) -> Callable:
    """In place of ``torch.cuda.make_graphed_callables``, which needs a GPU: it reads batches and
    weights from ``memory``, and leaves results and gradients in memory of its own. A real graph
    also keeps reading the network's old tensors if they are replaced."""
    assert allow_unused_input
    assert capture_error_mode == 'thread_local'  # NCCL's thread and that of pinned memory go on
    weights = [value for value in memory if value.requires_grad]

    def gradients(loss: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(loss, weights, gradient, allow_unused=True)

    for _ in range(3):  # it warms up, which changes running statistics
        values = compute(*memory)
        first = gradients(values['loss'], torch.ones(()))
    results = {name: torch.empty_like(value) for name, value in values.items()}
    kept = [None if value is None else torch.empty_like(value) for value in first]

    class Graph(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs: Tensor) -> tuple[Tensor, ...]:
            for place, value in zip(memory, inputs, strict=True):
                if place.data_ptr() != value.data_ptr():
                    assert not place.requires_grad  # the weights are not copied
                    place.copy_(value)
            with torch.enable_grad():
                values = compute(*memory)
            ctx.loss = values['loss']
            for name, place in results.items():
                place.copy_(values[name].detach())
            return tuple(place.detach() for place in results.values())

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, *outer: Tensor) -> tuple[Tensor | None, ...]:
            of_loss = outer[[*results].index('loss')]
            for place, value in zip(kept, gradients(ctx.loss, of_loss), strict=True):
                if place is not None:
                    place.copy_(value)
            of_weights = iter(kept)
            found = [next(of_weights) if value.requires_grad else None for value in memory]
            return tuple(None if value is None else value.detach() for value in found)

    return lambda *inputs: dict(zip(results, Graph.apply(*inputs), strict=True))


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'make_graphed_callables', in_fixed_memory)
    monkeypatch.setattr(graph, 'THREADS_MAY_RUN', True)  # torch 2.11 lacks this setting


def make(graph_batch: int, device: str = 'cpu', **settings: object) -> nn.Module:
    torch.manual_seed(0)
    model = classifier.SnapshotClassifier(
        network=dict(type='CifarResNet', depth=8, num_classes=4),
        loss=dict(type='SnapshotDistillationLoss', teacher_weight=1.0, temperature=2.0),
        data_preprocessor=dict(type='ImgDataPreprocessor', mean=[127.0] * 3, std=[64.0] * 3),
        graph_batch=graph_batch,
        **settings,
    )
    return model.to(device).train()


def batches(sizes: tuple[int, ...], device: str = 'cpu') -> list[dict[str, Tensor]]:
    drawn = torch.Generator().manual_seed(1)
    return [
        {
            'inputs': torch.randint(0, 256, (n, 3, 32, 32), generator=drawn).byte().to(device),
            'data_samples': torch.randint(0, 4, (n,), generator=drawn).to(device),
        }
        for n in sizes
    ]


def train(
    model: nn.Module, data: list[dict[str, Tensor]], wrapped: nn.Module | None = None
) -> list[Tensor]:
    """Train on the batches, each mini-generation on four; return all logged values, the statistics
    of each mini-generation and the final weights. ``wrapped`` is the model within DDP."""
    sgd = torch.optim.SGD(model.student.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    wrapper = OptimWrapper(sgd)
    logs, results = [], []
    for number, batch in enumerate(data):
        if number and number % 4 == 0:
            results += [model.statistics.equal, model.statistics.nats]
            model.statistics.clear()
            model.set_teacher(model.student.state_dict())
            model.teaching = True
        logs += train_in_micro_batches(wrapped or model, batch, wrapper, 1).values()
    results += [model.statistics.equal, model.statistics.nats]
    # Read at the end, since a run reads them up to 50 iterations later.
    return [*logs, *results, *model.student.state_dict().values()]


SIZES = (6, 6, 6, 5, 6, 6, 6, 5, 6, 6)  # an epoch's last batch may be smaller
DEVICES = [
    'cpu',
    pytest.param(
        'cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
    ),
]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN may otherwise choose other algorithms, or add in another order."""
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('precision', ['bf16', 'float32'])
@pytest.mark.parametrize('fold_teacher', [True, False])
def test_a_graph_changes_no_bit_of_training(
    device: str,
    precision: str,
    fold_teacher: bool,
    exact: None,
    request: pytest.FixtureRequest,
) -> None:
    """Losses, statistics and weights over three mini-generations; on the CPU with a simulation."""
    if device == 'cpu':
        request.getfixturevalue('simulated')
    settings = dict(precision=precision, fold_teacher=fold_teacher)
    data = batches(SIZES, device)
    ours, plain = (train(make(size, device, **settings), data) for size in (6, 0))
    assert len(ours) > 40
    for value, expected in zip(ours, plain, strict=True):
        assert torch.equal(value, expected)
    for batch, drawn in zip(data, batches(SIZES, device), strict=True):  # a graph has its own
        assert all(torch.equal(batch[name], drawn[name]) for name in batch)


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group in which DDP sums the gradients of this process alone."""
    backend = 'cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo'
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('find_unused', [True, False])
def test_a_graph_changes_no_bit_of_training_within_ddp(
    device: str,
    find_unused: bool,
    exact: None,
    one_process: None,
    request: pytest.FixtureRequest,
) -> None:
    """DDP takes the gradients out of the graph's memory into its buckets."""
    if device == 'cpu':
        request.getfixturevalue('simulated')
    settings = ddp_settings(find_unused)
    del settings['type']
    results = []
    for size in (6, 0):
        model = make(size, device)
        ddp = MMDistributedDataParallel(model, **settings)
        results.append(train(model, batches(SIZES, device), ddp))
    for value, expected in zip(*results, strict=True):
        assert torch.equal(value, expected)


def test_a_graph_does_not_use_the_nodes_into_which_ddp_hooks(
    simulated: None, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They belong to the stream on which DDP was built, and a capture has another."""
    used = []

    def walked(compute: Callable, memory: tuple[Tensor, ...], **_: object) -> Callable:
        nodes = [compute(*memory)['loss'].grad_fn]
        while nodes:
            node = nodes.pop()
            nodes += [earlier for earlier, _ in node.next_functions if earlier]
            used.append(getattr(node, 'variable', None))
        return compute

    monkeypatch.setattr(torch.cuda, 'make_graphed_callables', walked)
    model = make(6)
    MMDistributedDataParallel(model, device_ids=None)
    (batch,) = batches((6,))
    capture(model.compute_losses, model.student, *model.data_preprocessor(batch, True).values())
    weights = {id(weight): weight.data_ptr() for weight in model.student.parameters()}
    leaves = [value for value in used if value is not None]
    assert {leaf.data_ptr() for leaf in leaves} == set(weights.values())
    assert not {id(leaf) for leaf in leaves} & set(weights)


def test_a_failed_capture_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError('CUDA error: operation not permitted when stream is capturing\nat x')

    monkeypatch.setattr(torch.cuda, 'make_graphed_callables', fails)
    with pytest.raises(UserError, match=r'stream is capturing\): set cuda_graph=False'):
        train(make(6), batches((6,)))


def test_only_the_loss_of_a_graph_has_a_gradient(simulated: None) -> None:
    """Sums of values that have one would keep the graphs of all iterations in memory."""
    model = make(6)
    (batch,) = batches((6,))
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    assert {name for name, value in losses.items() if value.requires_grad} == {'loss'}
    assert not model.statistics.nats.requires_grad


@pytest.mark.parametrize('fold_teacher', [True, False])
def test_a_graph_is_captured_once_per_teacher(
    fold_teacher: bool, simulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = []

    def counted(losses: Callable, network: nn.Module, *batch: Tensor) -> Callable:
        captured.append(len(batch[0]))
        return capture(losses, network, *batch)

    monkeypatch.setattr(classifier, 'capture', counted)
    train(make(6, fold_teacher=fold_teacher), batches(SIZES))
    # Weights that replace those of an unfolded teacher are in the memory that the graph reads.
    assert captured == ([6, 6, 6] if fold_teacher else [6, 6])


def test_capturing_changes_no_statistics_and_draws_no_random_numbers(simulated: None) -> None:
    """A run that resumes within an epoch captures at another iteration."""
    model = make(6)
    model.student.fc = nn.Sequential(nn.Dropout(0.5), model.student.fc)
    (batch,) = batches((6,))
    before = {name: value.clone() for name, value in model.student.state_dict().items()}
    state = torch.get_rng_state()
    inputs, labels = model.data_preprocessor(batch, True).values()
    replay = capture(model.compute_losses, model.student, inputs, labels)
    assert torch.equal(torch.get_rng_state(), state)
    after = model.student.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    losses = [replay(inputs, labels)['loss'] for _ in range(2)]
    assert losses[0] != losses[1]  # it draws a mask for each batch


def test_evaluation_uses_no_graph(simulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, 'capture', None)
    model = make(6).eval()
    (batch,) = batches((6,))
    assert model(**model.data_preprocessor(batch, False), mode='loss')['loss'] > 0
