"""All that is measured on a GPU, with a tiny model on what there is."""

import pytest

from benchmarks import nvidia

TINY = nvidia.QWEN | {
    "vocab_size": 128,
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
SIZES = nvidia.Sizes(batches=(2,), prompt=8, response=4, rows=8, microbatches=2, square=64)


def test_measures_everything(tmp_path):
    found = nvidia.measure(TINY, SIZES, tmp_path, "float32")
    (decode,) = found.decode
    assert decode["decode tokens/s"] * decode["ms a step"] == pytest.approx(2 * 1e3)
    assert found.update["MFU"] > 0
    assert found.step["tokens/s"] * found.step["seconds"] == pytest.approx(8 * 4)
    assert found.spent
    assert sum(row["share"] for row in found.spent) <= 1
    assert list(tmp_path.rglob("perfetto_trace*"))
