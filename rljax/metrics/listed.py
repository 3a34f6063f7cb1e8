"""The list of metrics, by where they are computed.

A name may have parts that a run fills in, such as ``rewards/{reward}/mean``. Of several that fit,
the first one in the list is the metric's own.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    name: str
    unit: str  # tokens, nats, seconds, share, ...; "" for a plain number
    meaning: str
    source: str  # where it is computed
    peers: str = ""  # the words of verl and TRL for it
    exported: str = ""  # its name in Prometheus, where another has that which the rule gives


def _of(source: str, *rows: tuple[str, ...]) -> tuple[Metric, ...]:
    """Metrics of one source, from (name, unit, meaning, peers, exported), the last two if any."""
    return tuple(Metric(*row[:3], source, *row[3:]) for row in rows)


REWARDS = (
    *_of(
        "shaping/chain.py",
        (
            "reward_mean",
            "reward",
            "raw, as the task gave it: the weighted sum",
            "critic/score/mean, reward",
        ),
        (
            "reward_shaped_mean",
            "reward",
            "what is learned from, shaping included",
            "critic/rewards/mean",
        ),
        ("reward_shaping_ratio", "share", "Σ|shaping| / (Σ|raw| + Σ|shaping|)"),
        ("accuracy", "share", "responses whose first reward is above one half"),
        ("left_out_ratio", "share", "responses that nothing is learned from"),
    ),
    *_of(
        "shaping/select.py",
        (
            "frac_reward_zero_std",
            "share",
            "groups whose raw rewards are all the same",
            "frac_reward_zero_std",
        ),
    ),
    *_of(
        "rewards/combine.py",
        ("rewards/{reward}/mean", "reward", "one reward, before its weight", "rewards/{name}/mean"),
        ("rewards/{reward}/std", "reward", "its standard deviation", "rewards/{name}/std"),
        ("rewards/{reward}/nonfinite", "responses", "for which it gave no finite number"),
        ("rewards/{reward}/failed", "responses", "that a reward in Python failed for"),
        ("rewards/{reward}/not_applicable", "responses", "that a reward in Python has no say in"),
    ),
    *_of(
        "train/collect.py",
        ("reward_model/cropped_ratio", "share", "responses of which the reward model sees a part"),
    ),
)
LENGTHS = (
    *_of(
        "lengths.py",
        (
            "length_mean",
            "tokens",
            "mean, EOS included",
            "response_length/mean, completions/mean_length",
        ),
        ("length_std", "tokens", "standard deviation"),
        (
            "length_terminated_mean",
            "tokens",
            "mean of those that an EOS ended",
            "completions/mean_terminated_length",
        ),
        (
            "response_length_min",
            "tokens",
            "the shortest",
            "response_length/min, completions/min_length",
        ),
        (
            "response_length_max",
            "tokens",
            "the longest",
            "response_length/max, completions/max_length",
        ),
        ("response_length_p5", "tokens", "5th percentile"),
        ("response_length_p50", "tokens", "median"),
        ("response_length_p95", "tokens", "95th percentile"),
        ("in_band_ratio", "share", "responses whose length lies in the band"),
        (
            "truncated_ratio",
            "share",
            "responses that the budget cut off",
            "response_length/clip_ratio, completions/clipped_ratio",
        ),
    ),
    *_of(
        "shaping/length.py",
        ("length_correct_mean", "tokens", "mean of the correct ones"),
        ("length_wrong_mean", "tokens", "mean of the wrong ones"),
        ("length_overlong_tokens", "tokens", "how far the mean is beyond the configured maximum"),
    ),
    *_of(
        "shaping/",
        ("length_penalty_mean", "reward", "what length costs a response"),
        ("length_history_ratio", "share", "responses to prompts that were answered right before"),
    ),
    *_of(
        "shaping/chain.py",
        (
            "{stage}/length_penalty_mean",
            "reward",
            "the same of a second stage",
            "",
            "stage_length_penalty_mean",
        ),
        (
            "{stage}/length_overlong_tokens",
            "tokens",
            "likewise",
            "",
            "stage_length_overlong_tokens",
        ),
    ),
)
SHAPING = (
    *_of(
        "shaping/kl.py",
        (
            "reference_kl",
            "nats",
            "per token from the reference, mean of the responses' means",
            "actor/reward_kl_penalty, kl",
        ),
        ("{stage}/reference_kl", "nats", "the same of a second stage", "", "stage_reference_kl"),
    ),
    *_of(
        "shaping/select.py",
        ("informative_ratio", "share", "responses in groups whose raw rewards differ"),
    ),
    *_of(
        "train/refill.py",
        ("refill/rounds", "", "rounds of sampling, until enough groups differ"),
        ("refill/informative_ratio", "share", "groups sampled that differ"),
    ),
    *_of(
        "losses/baseline.py",
        ("shaping/mean", "reward", "BCO's running mean of the implicit reward"),
        ("shaping/count", "", "responses that it is the mean of"),
    ),
    *_of(
        "shaping/control.py",
        ("shaping/{path}/level", "", "moves of a controller away from its start"),
        ("shaping/{path}/streak", "", "batches in a row: overlong counted up, calm counted down"),
        ("shaping/{path}/changes", "", "how often a controller has moved"),
    ),
    *_of(
        "shaping/scale.py",
        ("shaping/{stage}/reward_scale/total", "reward", "Σ|raw|, older batches counting less"),
        ("shaping/{stage}/reward_scale/weight", "", "of these batches"),
    ),
    *_of(
        "shaping/",
        ("shaping/{stage}/weight", "", "the weight of a stage that adapts it"),
        ("shaping/{stage}/max_tokens", "tokens", "the end of the band that a controller moves"),
        ("shaping/{stage}/easy_tokens", "tokens", "LASER-D's target for easy prompts"),
        ("shaping/{stage}/medium_tokens", "tokens", "for those in between"),
        ("shaping/{stage}/hard_tokens", "tokens", "for hard ones"),
    ),
    *_of(
        "train/collect.py",
        (
            "shaping/{path}",
            "",
            "any other scalar of the state, such as an adaptive KL coefficient",
            "actor/reward_kl_penalty_coeff",
            "shaping_state",
        ),
    ),
)
POLICY = (
    *_of(
        "compose.py",
        ("policy/loss", "", "of the policy", "actor/pg_loss, loss"),
        ("policy/entropy", "nats", "per token", "actor/entropy, entropy"),
        (
            "policy/kl_loss",
            "nats",
            "per token from the reference, in the loss",
            "actor/kl_loss, kl",
        ),
        ("value/loss", "", "of the critic", "critic/vf_loss"),
        ("value/clipfrac", "share", "values that were clipped", "critic/vf_clipfrac"),
        ("value/mean", "reward", "mean value", "critic/vpred_mean"),
        ("value/return_mean", "reward", "mean return", "critic/returns/mean"),
    ),
    *_of(
        "losses/policy.py",
        ("policy/ppo_kl", "nats", "per token from the policy that sampled, k1", "actor/ppo_kl"),
        (
            "policy/clipfrac",
            "share",
            "tokens whose ratio was clipped",
            "actor/pg_clipfrac, clip_ratio",
        ),
        (
            "policy/clipfrac_dual",
            "share",
            "tokens that the dual clip held",
            "actor/pg_clipfrac_lower",
        ),
        ("policy/marked", "share", "tokens marked for their covariance"),
    ),
    *_of(
        "train/update.py",
        ("policy/grad_norm", "", "before clipping", "actor/grad_norm, grad_norm"),
        ("value/grad_norm", "", "before clipping", "critic/grad_norm"),
        ("reward/grad_norm", "", "before clipping", "grad_norm"),
    ),
    *_of(
        "train/collect.py",
        (
            "value/explained_var",
            "share",
            "of the returns' variance that values explain",
            "critic/vf_explained_var",
        ),
    ),
    *_of(
        "losses/correction.py",
        ("correction/kl", "nats", "per token from the policy as it sampled, k3"),
        ("correction/importance_mean", "", "mean weight of a token"),
        ("correction/capped_ratio", "share", "tokens whose weight was capped"),
        ("correction/rejected_ratio", "share", "responses that were rejected"),
    ),
)
GIVEN = (
    *_of(
        "algorithms/",
        ("policy/nll", "nats", "per token of the demonstrations, or of the chosen", "loss"),
        ("policy/divergence", "nats", "per token from the teacher"),
        ("reward/loss", "", "of the reward model", "loss"),
        (
            "rewards/chosen",
            "reward",
            "of the chosen: implicit, or by the reward model",
            "rewards/chosen",
        ),
        ("rewards/rejected", "reward", "of the rejected", "rewards/rejected"),
        ("rewards/margins", "reward", "between the two", "rewards/margins"),
        ("rewards/accuracies", "share", "pairs whose chosen one has more", "rewards/accuracies"),
        ("rewards/mean", "reward", "implicit, of labelled responses", "", "rewards_implicit_mean"),
        ("rewards/desirable_ratio", "share", "responses labelled as desirable"),
        ("logps/chosen", "nats", "log-prob of the chosen, as the loss takes it", "logps/chosen"),
        ("logps/rejected", "nats", "of the rejected", "logps/rejected"),
        ("logps/mean", "nats", "of labelled responses"),
    ),
    *_of(
        "losses/baseline.py",
        ("kto/kl", "nats", "KTO's reference point", "kl"),
        ("bco/delta", "reward", "BCO's, the running mean", "delta"),
    ),
)
GUARD = (
    *_of(
        "train/guard.py",
        ("guard/skipped_updates", "updates", "left out in this step"),
        ("guard/skipped_in_a_row", "steps", "in a row that lack an update"),
        ("guard/bad_rewards", "responses", "whose reward is not finite"),
        ("guard/bad_logprobs", "responses", "with a log-prob that is not finite"),
        ("guard/bad_values", "responses", "with a value that is not finite"),
        ("guard/bad_advantages", "responses", "with an advantage that is not finite"),
        ("guard/bad_outputs", "rows", "of which a network says what is not finite"),
        ("guard/bad_losses", "updates", "whose loss is not finite"),
        ("guard/bad_gradients", "updates", "whose gradient is not finite"),
        ("guard/over_max_kl", "updates", "beyond guard.max_kl"),
        ("guard/over_max_grad_norm", "updates", "beyond guard.max_grad_norm"),
        ("guard/kl", "nats", "the largest KL of an update, with guard.max_kl"),
    ),
    *_of(
        "host/loop.py",
        ("guard/rolled_back", "", "1 where the state went back to an earlier one"),
    ),
)
TIMING = (
    *_of(
        "train/collect.py",
        ("response_tokens", "tokens", "sampled in the step", "num_tokens"),
    ),
    *_of(
        "host/loop.py",
        (
            "perf/step_seconds",
            "seconds",
            "of the step, its metrics fetched",
            "timing_s/step, step_time",
        ),
        (
            "perf/tokens_per_second",
            "tokens/s",
            "response tokens by the time of the step",
            "perf/throughput",
        ),
        (
            "perf/between_seconds",
            "seconds",
            "before the step: records, evaluation, saving; not in the first",
        ),
    ),
    *_of(
        "planning/utilisation.py",
        (
            "perf/tflops_per_device",
            "TFLOP/s",
            "of the models' own, a device: what remat computes again and padding do not count",
        ),
        (
            "perf/mfu",
            "share",
            "the same, of the chip's published peak in bfloat16",
            "perf/mfu/actor",
        ),
    ),
    *_of(
        "host/compiled_step.py",
        (
            "perf/reward_seconds",
            "seconds",
            "of the host, on rewards in Python and a reward model's own tokens",
            "timing_s/reward",
        ),
        (
            "perf/reward_wait_seconds",
            "seconds",
            "of these, in which the devices had nothing to do",
        ),
    ),
)
EVALUATION = (
    *_of(
        "host/evaluation.py",
        ("eval/accuracy_greedy", "share", "correct greedy responses"),
        ("eval/accuracy_sampled", "share", "correct sampled ones", "val-core/…/mean@n"),
        (
            "eval/avg@{n}",
            "share",
            "the same, by the name that tells how many are sampled",
            "val-core/…/mean@n",
            "eval_avg_at_n",
        ),
        (
            "eval/pass@{k}",
            "share",
            "prompts that one of k responses solves",
            "val-core/…/best@k",
            "eval_pass_at_k",
        ),
        ("eval/length_mean", "tokens", "mean length of sampled responses"),
        ("eval/in_band_ratio", "share", "of these, in the band"),
        ("eval/truncated_ratio", "share", "of these, cut off by the budget"),
        ("eval/reward_mean", "reward", "raw"),
        ("eval/reward_shaped_mean", "reward", "shaping included"),
        ("eval/failed_ratio", "share", "responses that a reward failed for"),
    ),
)

TOLD_BY_SOURCE = ("eval/accuracy_", "eval/pass@", "eval/length_mean", "eval/reward_mean")


def _by_source(metric: Metric) -> Metric:
    """The same figure of the held-out rows of one data set."""
    figure = (metric.exported or metric.name).removeprefix("eval")[1:]
    return metric._replace(
        name=metric.name.replace("eval/", "eval/{data_source}/"),
        meaning=f"{metric.meaning}: of one data set of several",
        peers="",
        exported=f"eval_by_source_{figure}",
    )


def _held_out(metric: Metric) -> Metric:
    """The same metric of held-out rows."""
    return metric._replace(
        name=f"eval/heldout/{metric.name}",
        meaning=f"{metric.meaning}: of held-out rows",
        peers="",
        exported=metric.exported and f"eval_heldout_{metric.exported}",
    )


HELD_OUT = (
    *_of("train/given.py", ("eval/heldout/loss", "", "of held-out rows")),
    *map(_held_out, (POLICY[0], *GIVEN)),
)
EXPORTED = _of(
    "host/sinks/prometheus.py",
    ("step", "", "the last step"),
    ("last_step_timestamp_seconds", "seconds", "when it ended, since 1970"),
    ("skipped_updates_total", "updates", "left out since the process started"),
    ("length_band_min_tokens", "tokens", "the shortest healthy response, as configured"),
    ("length_band_max_tokens", "tokens", "the longest"),
)
GROUPS = {
    "Rewards": REWARDS,
    "Lengths": LENGTHS,
    "KL, filters and the state of shaping": SHAPING,
    "Policy and critic": POLICY,
    "Rows that are given": GIVEN,
    "The guard": GUARD,
    "Speed": TIMING,
    "Evaluations": EVALUATION,
    "Held-out rows": HELD_OUT,
    "Held-out prompts of several data sets": tuple(
        _by_source(metric) for metric in EVALUATION if metric.name.startswith(TOLD_BY_SOURCE)
    ),
    "Served to Prometheus alone": EXPORTED,
}
METRICS: tuple[Metric, ...] = tuple(metric for group in GROUPS.values() for metric in group)
