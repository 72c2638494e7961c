"""ResNet-20 on CIFAR-100, a teacher that lags by one iteration, T = 2 (Section 5).

The teacher has the student's current weights, but uses running statistics and is softened by T.
The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_lag1.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='lag 1',
    teacher_weight=1.0,
    temperature=2.0,
    copy_every=1,
    lag=1,
)
