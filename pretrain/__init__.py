"""Snapshot Distillation: training in mini-generations, each taught by the one before.

A pretraining run takes these steps in order, as does fine-tuning, without teachers and snapshots.

The start, in :mod:`pretrain.runs.start`:

1. ``load_config`` reads the config and its overrides (``runs/config.py``).
2. ``prepare`` checks the data and turns the few settings of the config into loss, schedule, loaders
   and hooks (``build.py``; ``downstream/build.py`` for fine-tuning).
3. ``choose_start`` takes the last undamaged ``epoch_*.pth`` of the work directory, else the
   checkpoint of ``--start-from``, else new weights (``runs/resume.py``). It refuses a checkpoint
   with other settings, except those in which SE and SD may differ (``may_differ`` in ``build.py``).
4. With ``--gpus N`` the command then starts once per process (``runs/processes.py``).

Then mmengine's Runner takes over. Hooks called at the same point run in the order of this list:

5. ``SnapshotHook.after_load_checkpoint`` checks that the checkpoint fits the network
   (``hooks.py``).
6. ``SnapshotHook.before_train`` loads the fixed teacher if the config has ``teacher.checkpoint``.
   ``Net2NetHook.before_train`` fills the student if the config has ``initial.checkpoint``.
7. ``RunRecordHook.before_train`` opens ``run.json`` and validates the last epoch if the run was
   stopped before it could (``runs/record.py``).

Each epoch:

8. ``MicroBatchTrainLoop.run_iter`` runs one iteration: the hook of step 9, the teacher's logits,
   the student's logits, the loss of Eqn 3, one update, and the hooks of steps 10 to 12
   (``runs/train_loop.py``, ``classifier.py``, ``losses.py``). On a GPU, CUDA graphs launch the
   kernels of CIFAR-100's networks (``graph.py``).
9. ``SnapshotHook.before_train_iter`` copies the student to the teacher if a mini-generation has
   just ended (Eqn 4; ``schedule.py``). With ``algorithm.copy_every``, the teacher may change at any
   iteration.
10. ``DeferredLogHook.after_train_iter`` reads the losses when a line of the log is due, and stops
    the run if one is not finite (``runs/log.py``).
11. ``ParamSchedulerHook.after_train_iter`` sets the next learning rate (Eqn 5;
    ``learning_rates.py``).
12. ``SaveHook.after_train_iter`` saves and stops the run after a signal, and every 15 minutes saves
    ``epoch_<e>_iter_<i>.pth`` (``runs/saving.py``).
13. ``SnapshotHook.after_train_epoch`` averages the running statistics over the processes and, at
    the end of mini-generation k, writes ``snapshot_k.pth``.
14. ``RunRecordHook.after_train_epoch`` enters the epoch in ``run.json``.
15. ``SaveHook.after_train_epoch`` writes ``epoch_<e>.pth`` if saves take at most 1 % of the time;
    it always writes the last epoch's.
16. ``ValLoop.run`` computes the errors on the test images (``metrics.py``).
17. ``RunRecordHook.after_val_epoch`` enters the errors in ``run.json``.

The end:

18. ``EnsembleHook.after_train`` evaluates the ensemble of the snapshots.
19. ``RunRecordHook.after_train`` marks the record as finished. Tables are made from records alone.
"""

__version__ = '0.1.0'
