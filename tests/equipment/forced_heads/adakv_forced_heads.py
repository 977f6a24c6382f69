"""Test equipment: one KV head per layer keeps every token of a context, the others keep none.

Put this folder on a server's PYTHONPATH to load it. ADAKV_TEST_FORCED_HEADS names the head of each layer,
"1,0,2,-,..." with "-" for a layer in which no head keeps anything.
"""

import os


def register():
    """Replace the step that allocates budgets; everything after it is the shipped code."""
    from adakv_sglang.core import budgets
    from adakv_sglang.core.types import HeadBudgets

    forced = os.environ["ADAKV_TEST_FORCED_HEADS"].split(",")

    def allocate_budgets(scores, num_slots, config):
        num_heads, num_tokens = scores.value.shape
        tokens = tuple(num_tokens if forced[scores.layer] == str(head) else 0 for head in range(num_heads))
        return HeadBudgets(scores.layer, tokens)

    budgets.allocate_budgets = allocate_budgets
