"""What the machine and its control groups can still give, read from files of both versions."""

import pytest

from k2core.model.free_memory import free_bytes

FREE = {"meminfo": "MemTotal:  4000 kB\nMemAvailable:    3000 kB\n"}


def written(folder, files):
    """Write files of given text below *folder*."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(text))
    return folder


@pytest.mark.parametrize(
    ("path", "files", "expected"),
    [
        ("0::/a/b", {}, 3_072_000),
        ("0::/a/b", {"a/b/memory.max": "max", "a/b/memory.current": 10}, 3_072_000),
        ("0::/a/b", {"a/b/memory.max": 1_000_000, "a/b/memory.current": 400_000}, 600_000),
        ("0::/a/b", {"a/memory.max": 900_000, "a/memory.current": 400_000, "a/b/memory.max": "max"}, 500_000),
        ("0::/elsewhere", {"memory.max": 900_000, "memory.current": 1_000_000}, 0),
        (
            "0::/a",
            {"a/memory.max": 900_000, "a/memory.current": 800_000, "a/memory.stat": "file 9\ninactive_file 300000\n"},
            400_000,
        ),
        ("4:cpu,memory:/a", {"memory/a/memory.limit_in_bytes": 70_000, "memory/a/memory.usage_in_bytes": 30_000}, 40_000),
        ("4:cpu:/a", {"memory/memory.limit_in_bytes": 70_000, "memory/memory.usage_in_bytes": 30_000}, 3_072_000),
        (
            "4:memory:/gone\n0::/",
            {
                "memory/memory.limit_in_bytes": 2**63 - 4096,
                "memory/memory.usage_in_bytes": 30_000,
                "memory/memory.stat": "total_inactive_file 5",
            },
            3_072_000,
        ),
    ],
)
def test_the_least_of_machine_and_groups_counts(tmp_path, path, files, expected):
    """The tightest limit of any group above the process counts, less what is used and cannot be given back."""
    proc = written(tmp_path / "proc", {**FREE, "self/cgroup": path + "\n"})
    assert free_bytes(proc, written(tmp_path / "groups", files)) == expected


def test_a_group_alone_is_enough(tmp_path):
    """Where the machine does not tell, a group's limit does."""
    proc = written(tmp_path / "proc", {"self/cgroup": "0::/\n"})
    groups = written(tmp_path / "groups", {"memory.max": 100, "memory.current": 40})
    assert free_bytes(proc, groups) == 60


def test_nothing_to_read_is_not_known(tmp_path):
    """Without any of the files the answer is None."""
    assert free_bytes(tmp_path / "proc", tmp_path / "groups") is None
