"""What ``bugurt status`` tells of a stage at work."""

from __future__ import annotations

from cli.view import _describe


def test_a_training_shows_where_it_is_how_good_and_how_fast() -> None:
    report = {
        "done": 1200,
        "total": 20_000,
        "unit": "steps",
        "metrics": {
            "epoch": 1.25,
            "loss": 2.3456,
            "learning_rate": 0.001,
            "held_out_loss": 2.5,
            "best_step": 1000,
            "bits_per_character": 1.875,
            "tokens_per_second": 12345.6,
            "seconds_left": 3600,
            "memory_mib": 5120,
        },
    }
    assert _describe([report]) == (
        "1,200 of 20,000 steps, epoch 1.25, loss 2.346, held out loss 2.5, 1.875 bits/character, 12,346 tokens/s, "
        "5,120 MiB"
    )


def test_shards_are_summed() -> None:
    reports = [
        {"done": done, "total": 50, "unit": "posts", "metrics": {"passing": None, "posts_per_second": 12.5}}
        for done in (10, 20)
    ]
    assert _describe([*reports, {}]) == "30 of 100 posts, 12.5 posts/s"
    assert _describe([{}]) == ""
