"""Many fine-tunings, one result.

- ``transfer`` pretrains and fine-tunes, ``tables`` makes Table 5 with the statistics of
  ``replicates``, ``report_page`` an HTML page of all, ``metafiles`` OpenMMLab's files.
- Speed: ``benchmark``.
"""
