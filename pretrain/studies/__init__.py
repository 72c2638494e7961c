"""Many pretraining runs, one result.

- Errors: ``sweep`` trains configs with seeds, ``paper_tables`` says which are the rows of a table,
  ``tables`` fills it, ``curves`` draws Figure 1, ``similarity`` is Table 2.
- Speed: ``benchmark``, ``kernels``, and ``libraries`` beside other libraries.
"""
