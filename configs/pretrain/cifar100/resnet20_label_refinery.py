"""ResNet-20 on CIFAR-100, Label Refinery in two generations (reference [2]).

In the second generation, the first generation's prediction for each crop replaces the true label.
The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_label_refinery.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='Label Refinery',
    generations=2,
    fresh_student=True,
    teacher_weight=1.0,
    temperature=1.0,
    label_weight=0.0,
)
