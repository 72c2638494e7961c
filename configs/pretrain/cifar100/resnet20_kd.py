"""ResNet-20 on CIFAR-100, knowledge distillation in two generations, T = 2.

Both sides are softened and λT = T² = 4 undoes the shrinking (reference [19]). The paper has no
number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_kd.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='KD',
    generations=2,
    fresh_student=True,
    teacher_weight=4.0,
    temperature=2.0,
    symmetric=True,
    label_weight=1.0,
)
