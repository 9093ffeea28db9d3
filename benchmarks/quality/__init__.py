"""How much of the fine-tunes' quality merging keeps: `python -m benchmarks.quality --domain lm|text|vision|chat`.

A domain (`domain`; `lm`, `text`, `vision`) is a base, its fine-tunes and a way to score weights on a task. `rows` lists
the merge methods with the hyper-parameters tried, `backbones` merges them, `experts` cuts data-free and calibrated
experts, `table` measures every cell of the table once and keeps it (`store`), `routing` measures the router, `curves`
Frank-Wolfe's scaling, and `report` and `plots` show what came out. The folder `chat` has the
domain of a real model, whose experts have other columns.
"""
