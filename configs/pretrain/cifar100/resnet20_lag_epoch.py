"""ResNet-20 on CIFAR-100, a teacher that lags by an epoch, T = 2 (Section 5).

The student is copied every 17 iterations: 23 copies wait in memory, and the lag is 391 to 407
iterations.
The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_lag_epoch.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='lag 1 epoch',
    teacher_weight=1.0,
    temperature=2.0,
    copy_every=17,
    lag=391,
)
