"""Control: the same mixture, trained in one place on all the data.

Extractor, experts and gate have the shapes of the federated run and are trained together, with labels, by the mixture's loss; nothing is
frozen and nothing is private. It says what the same networks learn when the data is shared. A small balance term keeps one expert from
taking everything (without it the gate collapses onto one expert on digits); like the FedAvg control it sees no augmented images.
"""

import torch
from torch import Tensor, nn

from nmoe.core.seeds import torch_generator
from nmoe.data import to_unit
from nmoe.learn import Adam, LocalTraining, predict
from nmoe.learn.gating import gate_loss
from nmoe.moe import Expert, Gate, build, combine, fresh_extractor, pick, together
from nmoe.recipes.evaluate import Score, TestBench
from nmoe.recipes.program import TrainProgram
from nmoe.recipes.watch import Progress

BALANCE = 0.05
MAX_EPOCHS = 40  # our choice; the figures in LOG.md are for it


def central_score(program: TrainProgram, bench: TestBench, progress: Progress) -> Score:
    """Train the mixture centrally, as many epochs as FedAvg's nodes but at most ``MAX_EPOCHS``, and score it on the test set.

    Args:
        program: the federated run whose shapes are taken.
        bench: the test set.
        progress: told of every epoch.
    """
    federated = program.fedavg()
    epochs = min(MAX_EPOCHS, federated.rounds * federated.training.epochs)
    training = LocalTraining(optimiser=Adam(lr=1e-3), batch_size=128, epochs=epochs)
    gates = program.gates()
    generator = torch_generator(program.options.seed, "central", "weights")
    mean, deviation = program.pixels()
    extractor = fresh_extractor(program.extractor(), pixel_mean=mean, pixel_std=deviation, generator=generator)
    experts = []
    for _ in range(gates.num_nodes):
        expert = build(program.expert(), generator=generator)
        assert isinstance(expert, Expert)
        experts.append(expert)
    stacked = together(experts)
    gate = build(gates.gate, generator=generator)
    assert isinstance(gate, Gate)
    mask = torch.ones(gates.num_nodes, dtype=torch.bool)
    train = program.pooled()
    images, labels = to_unit(train.images), torch.from_numpy(train.labels)

    def loss(batch: Tensor) -> Tensor:
        features = extractor(images[batch])
        routing = gate(features, k=gates.k, mask=mask)
        return gate_loss(routing, stacked(features), labels[batch], mix=gates.mix, balance=BALANCE)

    whole = nn.ModuleList([extractor, stacked, gate])
    training.run(
        whole,
        len(labels),
        loss,
        generator=torch_generator(program.options.seed, "central", "train"),
        after_epoch=lambda epoch: progress.stage("central", epoch, epochs),
    )
    features = predict(extractor, bench.images)
    with torch.inference_mode():
        routing = gate(features, k=gates.k, mask=mask)
        return bench.score_predictions(combine(pick(stacked(features), routing), routing.weights, mix=gates.mix))
