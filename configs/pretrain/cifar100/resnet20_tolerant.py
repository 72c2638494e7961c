"""ResNet-20 on CIFAR-100, tolerant teacher in four generations (reference [49]).

Born-again networks whose first generation is penalised for confidence: the penalty is the highest
class score minus the mean of the next four, with weight 1. The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_tolerant.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='Tolerant',
    generations=4,
    fresh_student=True,
    teacher_weight=1.0,
    temperature=1.0,
    label_weight=1.0,
    confidence_penalty=1.0,
)
