"""What an attempt left, looked up by name."""

from __future__ import annotations

import pytest

from atlas_dist.core.attempts import Blob, CommittedRef


def test_a_result_has_the_files_that_it_names_and_says_which_where_one_is_asked_for_in_vain() -> None:
    adapter, task = Blob("adapter.safetensors", 10, "a" * 64), Blob("task.safetensors", 20, "b" * 64)
    ref = CommittedRef("j", "j-e1-1", "runs/r/attempts/j-e1-1", (adapter, task))
    assert ref.blob("task.safetensors") is task
    with pytest.raises(KeyError, match=r"j-e1-1 has no file memory\.safetensors.*'adapter\.safetensors', 'task\.safetensors'"):
        ref.blob("memory.safetensors")
