"""Results of many pretraining runs.

- Errors: ``sweep`` trains configs with seeds, ``similarity`` trains the runs of Table 2,
  ``paper_tables`` lists the rows of each table, ``tables`` fills them, ``curves`` draws Figure 1.
- Speed: ``benchmark``, ``kernels``, and ``libraries`` for a comparison with other libraries.
"""
