"""Evaluators for scripts: descriptor or network in, loss, metrics and seconds out; on this process or on all ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible, TrialFailed
from nord_hpc.scripting.configs import Configs, as_metrics
from nord_hpc.scripting.evaluation import Datasets, Evaluation, Recipe, Request, evaluate

if TYPE_CHECKING:
    from nord_hpc.scripting.environment import Environment


class Evaluator(ABC):
    """What evaluators for scripts have in common.

    Args:
        optimizer_class: of torch.optim, or one's own.
        optimizer_params: by name, such as {"lr": 0.01}.
        verbose: print a line after each epoch and the result.
        configs: the table of data sets; None for that of this process.
        options: see `nord_hpc.scripting.evaluation.Recipe`: criterion, metrics, scheduler, batch_size, split and more.
    """

    def __init__(
        self,
        optimizer_class: Callable[..., torch.optim.Optimizer],
        optimizer_params: Mapping[str, Any],
        verbose: bool = False,
        *,
        configs: Configs | None = None,
        **options: Any,
    ) -> None:
        if options.get("metrics") is not None:
            options["metrics"] = as_metrics(options["metrics"])
        known = Recipe.__dataclass_fields__
        for name in options:
            if name not in known:
                raise BadInput(f"{name} is no option of an evaluator; set any of {', '.join(known)}")
        self.conf = configs or Configs()
        self.verbose = verbose
        self._datasets = Datasets()
        self._recipe = Recipe(optimizer_class, dict(optimizer_params), verbose=verbose, **options)

    def descriptor_evaluate(
        self,
        descriptor: NeuralDescriptor,
        epochs: int,
        data_percentage: float = 1.0,
        untrained: bool = False,
        dataset: str = "cifar10",
        *,
        seed: int | None = None,
    ) -> Evaluation:
        """Build the network of a descriptor for a data set, train it, and score it.

        Args:
            data_percentage: share of the training data, above 0 and at most 1.
            untrained: score the network with its random weights.
            dataset: its name in the table.
            seed: of weights, order of samples and noise; None for one from torch's generator.

        Returns:
            (loss, metrics, total_time).

        Raises:
            Infeasible: the network cannot be built for these data, or these are too few; the text says why.
            TrialFailed: a loss or an output is not finite, or memory is short.
            BadInput: the data or settings are wrong.
        """
        return self._evaluate(self._request(epochs, data_percentage, untrained, dataset, seed), descriptor)

    def net_evaluate(
        self,
        net: nn.Module,
        epochs: int,
        data_percentage: float = 1.0,
        untrained: bool = False,
        dataset: str = "cifar10",
        return_net: bool = False,
        *,
        seed: int | None = None,
    ) -> Any:
        """Train a network in place, and score it; see `descriptor_evaluate`.

        Args:
            return_net: whether the network stands as a fourth after loss, metrics and total_time.
        """
        result = self._evaluate(self._request(epochs, data_percentage, untrained, dataset, seed), net)
        return (*result, net) if return_net else result

    def _request(self, epochs: int, data_percentage: float, untrained: bool, dataset: str, seed: int | None) -> Request:
        size = self._size()
        shards = self._recipe.shards or size
        if shards % size:
            raise BadInput(f"shards {shards} are no multiple of {size} ranks; set shards to a multiple of {size}")
        if self._recipe.batch_size < 2 * shards:
            raise BadInput(
                f"batch_size {self._recipe.batch_size} leaves fewer than 2 samples to each of {shards} shards; "
                f"set batch_size to {2 * shards} or more"
            )
        return Request(
            recipe=self._recipe,
            record=self.conf.record(dataset),
            epochs=epochs,
            fraction=data_percentage,
            untrained=untrained,
            seed=int(torch.randint(2**62, ())) if seed is None else seed,
            shards=shards,
            threads=self._recipe.threads or torch.get_num_threads(),
        )

    def _say_result(self, result: Evaluation) -> None:
        if self.verbose:
            values = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
            say(f"{self._recipe.split}: loss {result.loss:.4f}, {values}, {result.total_time:.2f} s")

    @abstractmethod
    def _size(self) -> int:
        """Ranks that train together."""

    @abstractmethod
    def _evaluate(self, request: Request, network: NeuralDescriptor | nn.Module) -> Evaluation: ...


class LocalEvaluator(Evaluator):
    """Evaluates in this process alone; see `Evaluator`."""

    def _size(self) -> int:
        return 1

    def _evaluate(self, request: Request, network: NeuralDescriptor | nn.Module) -> Evaluation:
        result = evaluate(
            request,
            network,
            datasets=self._datasets,
            key=id(request.record),
            data_parallel=SingleGang(),
            say=say if self.verbose else None,
        )[0]
        self._say_result(result)
        return result


@dataclass(frozen=True, slots=True)
class BatchEvaluation:
    """What became of several networks, in their order; unpacks as (losses, metrics, total_time).

    Attributes:
        losses: None for a network without result.
        metrics: empty for a network without result.
        total_time: seconds of all trainings.
        reasons: why there is no result; None where there is one.
    """

    losses: tuple[float | None, ...]
    metrics: tuple[dict[str, float], ...]
    total_time: float
    reasons: tuple[str | None, ...]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.losses, self.metrics, self.total_time))


class LocalBatchEvaluator(LocalEvaluator):
    """Evaluates several networks on the same batches: each sees the same samples in the same order.

    What a network cannot do, such as being built, costs its own result alone.
    """

    def descriptors_evaluate(
        self,
        descriptors: Sequence[NeuralDescriptor],
        epochs: int,
        data_percentage: float = 1.0,
        untrained: bool = False,
        dataset: str = "cifar10",
        *,
        seed: int | None = None,
    ) -> BatchEvaluation:
        """See `descriptor_evaluate`."""
        return self._evaluate_all(self._request(epochs, data_percentage, untrained, dataset, seed), descriptors)

    def nets_evaluate(
        self,
        nets: Sequence[nn.Module],
        epochs: int,
        data_percentage: float = 1.0,
        untrained: bool = False,
        dataset: str = "cifar10",
        *,
        seed: int | None = None,
    ) -> BatchEvaluation:
        """Networks are trained in place. See `net_evaluate`."""
        return self._evaluate_all(self._request(epochs, data_percentage, untrained, dataset, seed), nets)

    def _evaluate_all(
        self, request: Request, networks: Sequence[NeuralDescriptor] | Sequence[nn.Module]
    ) -> BatchEvaluation:
        results: list[Evaluation | None] = []
        reasons: list[str | None] = []
        for network in networks:
            try:
                results.append(self._evaluate(request, network))
                reasons.append(None)
            except (Infeasible, TrialFailed) as error:
                results.append(None)
                reasons.append(str(error))
        return BatchEvaluation(
            losses=tuple(None if result is None else result.loss for result in results),
            metrics=tuple({} if result is None else result.metrics for result in results),
            total_time=sum(result.total_time for result in results if result is not None),
            reasons=tuple(reasons),
        )


class DistributedEvaluator(Evaluator):
    """Evaluates data-parallel on all ranks of the `Environment` that was entered last; see `Evaluator`."""

    def _size(self) -> int:
        return self._environment().world_size

    def _evaluate(self, request: Request, network: NeuralDescriptor | nn.Module) -> Evaluation:
        result = self._environment().evaluate(request, network, say=say if self.verbose else None)
        self._say_result(result)
        return result

    @staticmethod
    def _environment() -> Environment:
        from nord_hpc.scripting.environment import current

        environment = current()
        if environment is None:
            raise BadInput(
                "a DistributedEvaluator works inside an Environment; write: with Environment() as environment"
            )
        return environment


def say(text: str) -> None:
    """Show one line: scripts print what the command line shows as progress."""
    print(text, flush=True)
