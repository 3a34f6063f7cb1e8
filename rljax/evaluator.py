"""Evaluating a state on held-out rows: answering their prompts, and measuring their loss."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from rljax.build import Build
from rljax.config import Config
from rljax.errors import UserError
from rljax.heldout import Answering, Measuring
from rljax.host.agree import fetch
from rljax.host.evaluation import Evaluated, join, summarise, values_of_each
from rljax.host.loop import not_finite, to_host
from rljax.host.python_rewards import SHORT
from rljax.host.secrets import redact
from rljax.sharding import rollout_shardings, row_sharding
from rljax.types import Rewards, Rollout, TrainState

EVALUATION = 2  # folded into the seed's key: evaluations draw apart from training


class Evaluator:
    """Evaluates states, always on the same rows and with the same draws.

    Its programs are compiled when it is first called, within ``compiling(what)``.
    """

    def __init__(
        self,
        config: Config,
        built: Build,
        compiling: Callable[[str], AbstractContextManager],
        measuring: Measuring | None = None,
        check_stop: Callable[[], None] = lambda: None,
    ):
        """With ``measuring``, that is measured, in place of what was built. Between two batches
        ``check_stop`` may raise ``Stopped``."""
        self._config, self._built, self._compiling = config, built, compiling
        self._measuring = measuring or built.measuring
        self._check_stop = check_stop
        self._programs: dict[str, Any] = {}

    def __call__(self, state: TrainState, warn: Callable[[str], None] | None = None) -> Evaluated:
        """The figures of a state, and its responses.

        Raises ``Stopped`` if the run is to stop; and ``UserError`` if a reward or a figure is not
        finite, unless there is ``warn`` to be told: then such a response counts as one that a
        reward in Python failed for.
        """
        figures: dict[str, float] = {}
        samples = []
        if self._measuring is not None:
            figures |= self._measure(self._measuring, state, warn or _refuse)
        if self._built.answering is not None:
            answered = self._answer(self._built.answering, state, warn)
            figures |= answered.figures
            samples = answered.samples
        return Evaluated(figures, samples)

    def _answer(
        self, answering: Answering, state: TrainState, warn: Callable[[str], None] | None
    ) -> Evaluated:
        """Held-out prompts, answered greedily and as sampled."""
        config, chunks = self._config, answering.chunks()
        key = jax.random.fold_in(jax.random.key(config.seed), EVALUATION)
        if "draw" not in self._programs:
            with self._compiling("evaluation"):
                mesh, given = self._built.mesh, (state, chunks[0], key)
                drawn = jax.eval_shape(answering.draw, *given)
                places = rollout_shardings(drawn, mesh)
                drawing = jax.jit(answering.draw, out_shardings=places).lower(*given)
                drawn = answering.between.abstract(drawn, mesh)
                judging = jax.jit(answering.judge).lower(state, drawn)
                self._programs |= {"draw": drawing.compile(), "judge": judging.compile()}
        judged = []
        for number, chunk in enumerate(chunks):
            self._check_stop()
            chunk_key = key if len(chunks) == 1 else jax.random.fold_in(key, number)
            drawn = self._programs["draw"](state, chunk, chunk_key)
            (drawn,) = answering.between.add([drawn])
            part = self._programs["judge"](state, drawn)
            told = (part.rollout, part.rewards, part.scored._replace(metrics={}))
            judged.append(fetch(told, self._built.mesh))
            if warn is None:
                for fault in not_finite(to_host(part.metrics)):
                    _refuse(f"{fault} on the held-out prompts{self._first_bad(*judged[-1][:2])}")
        rows = answering.prompts * (1 + answering.samples)
        rollout, rewards, said = jax.tree.map(lambda x: x[:rows], join(judged))
        scored = said.counted
        finite = np.isfinite(rewards.raw)
        if answering.shaped:
            finite &= np.isfinite(rewards.shaped)
        if warn is not None and not finite[scored].all():
            count = int((~finite & scored).sum())
            warn(f"{count} held-out response(s) have no finite reward, and enter no figure of it")
        scored = scored & finite
        sources = [row.get("data_source") for row in answering.table.rows[: answering.prompts]]
        return summarise(
            rollout,
            rewards,
            scored,
            self._built.tokenizer,
            each=values_of_each(rollout, said),
            samples=answering.samples,
            sources=None if None in sources else [str(source) for source in sources],
            **config.length.model_dump(),
            shaped=answering.shaped,
        )

    def _first_bad(self, rollout: Rollout, rewards: Rewards) -> str:
        """The first response whose reward is not finite, in words."""
        rows = np.flatnonzero(~np.isfinite(rewards.raw))
        if not rows.size:
            return ""
        row, decode = rows[0], self._built.tokenizer.decode
        chosen = rollout.action_mask[row]
        texts = (decode(rollout.tokens[row][of]) for of in (rollout.mask[row] & ~chosen, chosen))
        prompt, response = (SHORT.repr(redact(text)) for text in texts)
        return f"; the first: prompt {prompt}, response {response}"

    def _measure(
        self, measuring: Measuring, state: TrainState, report: Callable[[str], None]
    ) -> dict[str, float]:
        """The means of a loss and its metrics over held-out rows."""
        rows = row_sharding(self._built.mesh)
        total, sums = 0.0, {}
        for items in measuring.items():
            self._check_stop()
            batch = jax.device_put(measuring.table.take(items), rows)
            if "measure" not in self._programs:
                with self._compiling("held-out loss"):
                    program = jax.jit(measuring.measure).lower(state, batch)
                    self._programs["measure"] = program.compile()
            metrics, count = fetch(self._programs["measure"](state, batch), self._built.mesh)
            total += float(count)
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(count) * float(value)
        figures = {f"heldout/{name}": value / total for name, value in sums.items()}
        for fault in not_finite(figures):
            report(f"{fault} on the held-out rows")
        return figures


def _refuse(fault: str) -> None:
    raise UserError(fault)
