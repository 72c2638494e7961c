"""One run of any stage, from the command line to its record, independent of method and data set.

- From a command to a run: ``cli``, ``config``, ``start``, ``resume``, ``processes``, ``packages``.
- While it runs: ``train_loop``, ``precision``, ``randomness``, ``log``, ``saving``.
- What it leaves: ``checkpoint``, ``record``, ``identity``, ``backbone_file``.
- Many runs from one command: ``launch``, ``cluster``. Their records as tables: ``tables``.
- For all of these: ``errors``, ``file_checks``.
"""
