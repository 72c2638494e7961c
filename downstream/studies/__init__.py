"""Studies of many fine-tuning runs.

- ``transfer`` pretrains and fine-tunes; ``tables`` makes Table 5 with the statistics of
  ``replicates``; ``report_page`` writes an HTML report of all runs; ``metafiles`` makes
  OpenMMLab's metafiles.
- ``benchmark`` measures the speed of fine-tuning.
"""
