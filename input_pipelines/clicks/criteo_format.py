"""Criteo 1TB in the binary format of MLPerf's reference for DLRM (facebookresearch/dlrm, data_loader_terabyte.py).

An example is 40 little-endian int32: the label, 13 numbers and the rows of 26 tables.
"""

from __future__ import annotations

from input_pipelines.clicks import click_logs

NUM_TRAIN, NUM_EVAL = 4_195_197_692, 89_137_319
COLUMNS = click_logs.Columns(
    num_dense=13,
    table_sizes=(
        39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10, 2208, 11938,
        155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
    ),
    multi_hot_sizes=(1,) * 26,
)  # fmt: skip
NUM_TABLES = len(COLUMNS.table_sizes)
FIRST_TABLE = 1 + COLUMNS.num_dense
"""Place of the first table's row in an example."""
INTS = FIRST_TABLE + NUM_TABLES
"""int32 values of an example."""
FILES = {split: f"terabyte_processed_{split}.bin" for split in ("train", "test", "val")}
