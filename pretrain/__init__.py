"""Snapshot Distillation: training in mini-generations, each taught by the one before.

What happens in a pretraining run, in this order. Fine-tuning has the steps without a snapshot.

The start, in :mod:`pretrain.runs.start`:

1. ``load_config`` reads the config and its overrides (``runs/config.py``).
2. ``prepare`` checks the data and turns the few settings of the config into loss, schedule, loaders
   and hooks (``build.py``; ``downstream/build.py`` for fine-tuning).
3. ``choose_start`` takes the last ``epoch_*.pth`` of the work directory, else the checkpoint of
   ``--start-from``, else new weights (``runs/resume.py``). A checkpoint of another setting is
   refused, except where SE and SD may differ (``may_differ`` in ``build.py``).
4. With ``--gpus N`` the command is then started once for each process (``runs/processes.py``).

mmengine's Runner takes over. Hooks of the same moment run in the order of this list:

5. ``SnapshotHook.after_load_checkpoint`` checks that the checkpoint is of this network
   (``hooks.py``).
6. ``SnapshotHook.before_train`` loads the one teacher of a run that has ``teacher.checkpoint``, and
   ``Net2NetHook.before_train`` the first weights of one that has ``initial.checkpoint``.
7. ``RunRecordHook.before_train`` opens ``run.json`` and validates the last epoch if the run was
   stopped before it could (``runs/record.py``).

Each epoch:

8. ``MicroBatchTrainLoop.run_iter`` is an iteration. It calls the hook of step 9, computes the
   teacher's logits, the student's logits, the loss of Eqn 3 and one update, and calls the hooks of
   steps 10 to 12 (``runs/train_loop.py``, ``classifier.py``, ``losses.py``).
9. ``SnapshotHook.before_train_iter`` makes the student the teacher if a mini-generation has just
   ended (Eqn 4; ``schedule.py``). A teacher that lags by iterations may change here as well.
10. ``DeferredLogHook.after_train_iter`` reads the losses when a line of the log is due, and stops
    the run if one is not finite (``runs/log.py``).
11. ``ParamSchedulerHook.after_train_iter`` gives the next learning rate (Eqn 5;
    ``learning_rates.py``).
12. ``SaveHook.after_train_iter`` saves and stops the run if a signal says so; every 15 minutes it
    saves ``epoch_<e>_iter_<i>.pth`` (``runs/saving.py``).
13. ``SnapshotHook.after_train_epoch`` averages the running statistics over the processes and, at
    the end of mini-generation k, writes ``snapshot_k.pth``.
14. ``RunRecordHook.after_train_epoch`` enters the epoch in ``run.json``.
15. ``SaveHook.after_train_epoch`` writes ``epoch_<e>.pth``, unless that takes too long.
16. ``ValLoop.run`` computes the errors on the test images (``metrics.py``).
17. ``RunRecordHook.after_val_epoch`` enters them.

The end:

18. ``EnsembleHook.after_train`` evaluates the snapshots together.
19. ``RunRecordHook.after_train`` marks the record as finished. Tables read nothing but records.
"""

__version__ = '0.1.0'
