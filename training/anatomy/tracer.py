"""A forward pass, watched: every operation on a tensor, the layer that it belongs to, its cost and what reaches its result."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from convoy.training.anatomy.operations import CONSTANTS, Call, Followed, Knowledge, Lost, follow, has_rule, is_pointwise

_SHOWN: Final = ("flatten", "reshape", "view", "pad", "constant_pad_nd", "slice", "cat", "mean", "sum", "amax")
"""Operations outside any layer that are steps of their own; besides them those with a cost, pools, and sums of branches."""


@dataclass
class Step:
    """One call of a layer, or of an operation that stands outside any layer.

    Attributes:
        path: The layer's name in the network; of an operation, that of the module around it.
        module: The layer, or the module around the operation.
        operation: The operation's name; "" for a call of a layer.
        arguments: The operation's arguments that are no tensors.
        parameters: The layer's own, those of its first call alone.
        dims: What it gives, without the batch axis.
        macs: Multiply-accumulates of its convolutions and matrix products, for one image.
        costly: The names of the operations that these are.
        given_dims: What a layer is given, without the batch axis.
        given: What is known of the receptive fields of that.
        knowledge: The same of what it gives; None where no image reaches it.
    """

    path: str
    module: nn.Module
    operation: str = ""
    arguments: tuple[Any, ...] = ()
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dims: tuple[int, ...] = ()
    macs: int = 0
    costly: set[str] = field(default_factory=set)
    given_dims: tuple[int, ...] = ()
    given: Knowledge | None = None
    knowledge: Knowledge | None = None


def trace(network: nn.Module, pixels: Tensor) -> list[Step]:
    """Run ``network`` in evaluation mode on ``pixels`` and note every step, in order.

    Args:
        network: Takes float (1, C, H, W); on any device, the meta device included, where nothing is computed.
        pixels: float (1, C, H, W).

    Raises:
        RuntimeError: The network does not take such images, or does not run on the device.
    """
    watch = _Watch(network, pixels)
    was_training = network.training
    network.eval()
    try:
        # in inference mode the operations arrive whole: linear rather than the views and products that it is made of
        with torch.inference_mode(), watch.layers(), watch:
            network(pixels)
    finally:
        network.train(was_training)
    return watch.steps


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise the first operation imports all of torch.compile

    def __init__(self, network: nn.Module, pixels: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self._network = network
        self._known: MutableMapping[Tensor, Knowledge] = WeakTensorKeyDictionary()
        self._known[pixels] = Followed.image(pixels.shape)
        self._stack: list[Step] = [Step("", network)]
        self._unused = {id(parameter): name for name, parameter in network.named_parameters()}
        self._lost: Lost | None = None

    @contextmanager
    def layers(self) -> Iterator[None]:
        """Note which layer runs."""
        handles = []
        for path, module in self._network.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(path)))
            handles.append(module.register_forward_hook(self._leaving, always_call=False))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, path: str) -> Any:
        def enter(module: nn.Module, inputs: Any) -> None:
            step = Step(path, module)
            tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
            if tensors:
                step.given_dims, step.given = tuple(tensors[0].shape[1:]), self._known.get(tensors[0])
            self._stack.append(step)
            for name, parameter in module.named_parameters(recurse=False):
                self._use(parameter, name)
            if _is_layer(module):
                self.steps.append(step)

        return enter

    def _use(self, parameter: nn.Parameter, name: str | None = None) -> None:
        """Count it as the running layer's: its own, or that of a layer which is never called and whose weights are used."""
        step, path = self._stack[-1], self._unused.pop(id(parameter), None)
        if path is not None:
            if not step.parameters and not _is_layer(step.module):
                self.steps.append(step)
            step.parameters[name or path] = tuple(parameter.shape)

    def _leaving(self, module: nn.Module, inputs: Any, result: Any) -> None:  # noqa: ARG002 torch's signature
        step = self._stack.pop()
        if _is_layer(module):  # of a module around layers, they say what it gives
            self._note(step, result)

    def _note(self, step: Step, result: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if tensors:
            step.dims = tuple(tensors[0].shape[1:])
            step.knowledge = self._known.get(tensors[0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__.rstrip("_")
        if not has_rule(name) and not is_pointwise(func) and func._overloadpacket not in flop_registry:
            # what has no rule of its own may be made of operations that have one
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self._watch(func, name, args, kwargs, result)
        return result

    def _watch(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, nn.Parameter):
                self._use(leaf)
        sources = tuple(
            (leaf, self._known[leaf]) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf in self._known
        )
        macs = _macs(func, name, args, kwargs, result)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if self._lost is not None:  # whatever holds a part of what was written: nothing is followed any more
            for tensor in results:
                self._known[tensor] = self._lost
        elif results and name in CONSTANTS:
            if func._schema.is_mutable and not _is_whole(results[0]):
                self._lose(name, results[0])
            self._known.pop(results[0], None)
        elif sources and results:
            if name == "copy":
                sources = sources[-1:]  # what was there before is overwritten
            call = Call(name, args, kwargs, result, sources)
            knowledge = follow(call, is_pointwise=is_pointwise(func))
            if func._schema.is_mutable and not _is_same(self._known.get(results[0]), knowledge):
                self._lose(name, results[0])
                knowledge = self._lost or knowledge
            for tensor in results:
                self._known[tensor] = knowledge
        layer = self._stack[-1]
        if macs:
            layer.macs += macs
            layer.costly.add(name)
        if not _is_layer(layer.module) and _is_shown(name, macs, sources, results):
            layer.macs -= macs
            arguments = tuple(argument for argument in args if not _has_tensor(argument))
            step = Step(layer.path, layer.module, operation=name, arguments=arguments, macs=macs, costly={name} if macs else set())
            self._note(step, result)
            self.steps.append(step)

    def _lose(self, name: str, written: Tensor) -> None:
        """Follow nothing any more where another tensor holds a part of what is written: its fields are not what they were."""
        storage = written.untyped_storage()._cdata
        shared = any(other is not written and other.untyped_storage()._cdata == storage for other in self._known)
        if shared or not _is_whole(written):
            self._lost = Lost(f"{name.replace('_', ' ')} writes into a tensor that others share")


def _is_layer(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _has_tensor(argument: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(argument))


def _is_whole(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _is_same(before: Knowledge | None, after: Knowledge) -> bool:
    return isinstance(before, Followed) and isinstance(after, Followed) and before.reach is after.reach


def _is_shown(name: str, macs: int, sources: Any, results: list[Tensor]) -> bool:
    if not sources or not results:
        return False
    if macs or "pool" in name or len({id(tensor) for tensor, _ in sources}) > 1:
        return True
    return name in _SHOWN and results[0].shape != sources[0][0].shape


def _macs(func: Any, name: str, args: Any, kwargs: Any, result: Any) -> int:
    """Multiply-accumulates of a convolution or a matrix product; 0 for what is neither."""
    if name == "linear":
        n: int = result.numel() * args[1].shape[-1]
        return n
    count = flop_registry.get(func._overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=result)) // 2  # torch counts both as one each
