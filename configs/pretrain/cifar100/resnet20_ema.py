"""ResNet-20 on CIFAR-100, taught by a moving average of the student, T = 2 (Section 5).

The teacher is a mean teacher [42], but all images have labels, and teacher and student see the same
augmented images. The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_ema.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='average',
    teacher_weight=1.0,
    temperature=2.0,
    copy_every=1,
    decay=0.99,
)
