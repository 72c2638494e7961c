"""ResNet-20 on CIFAR-100, symmetric Snapshot Distillation: T = 2 also softens the student.

The ablation of Section 3.3.3; nothing else differs from SD. The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_symmetric.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='SD symmetric', generations=4, teacher_weight=1.0, temperature=2.0, symmetric=True
)
