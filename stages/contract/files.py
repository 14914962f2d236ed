"""Names of what stages leave for each other inside their artifacts."""

JOB_FILE = "job.json"
"""Any stage: what it was told."""
JOURNAL_FILE = "metrics.jsonl"
"""Any stage: what it measured, step by step."""
STOP_FILE = "stop"
"""Among what serves to resume: asks the workers of a training stage to leave a checkpoint and end."""
NOTICE_FILE = "notice.txt"
"""Beside it: what the workers of a training stage have to say in the stage's own log."""
SHARDS_FILE = "shards.jsonl"
"""Stages that work in shards: each shard's file with its rows, bytes and checksum."""
STATES_FOLDER = "states"
"""Capture: shards of the teacher's raw hidden states."""
READOUT_FOLDER = "teacher"
"""Capture: the teacher's configuration, final norm and head."""
TEACHER_VERBALIZERS_FILE = "teacher_verbalizers.safetensors"
"""Verbalization."""
STUDENT_VERBALIZERS_FILE = "student_verbalizers.safetensors"
"""Verbalization, and interaction after training them further."""
SAYINGS_FILE = "sayings.json"
"""Verbalization and interaction: what the layers say about a few samples."""
TARGETS_FOLDER = "targets"
"""Precompute: shards of what the teacher's layers say."""
TEACHER_HEAD_FILE = "teacher_head.safetensors"
"""Precompute with the `hidden` codec."""
QUARANTINE_FILE = "quarantine.jsonl"
"""Any stage that reads samples: those left out, each with its line and reason."""
PREDICTIONS_FOLDER = "predictions"
"""Evaluation: shards of answers."""
LAST_LAYER = "last"
"""Column of the head's input in both caches."""


def block_column(block: int) -> str:
    """Column of a target layer in both caches."""
    return f"block_{block:03d}"


def column_block(column: str) -> int:
    """The block index a column stands for."""
    return int(column.removeprefix("block_"))
