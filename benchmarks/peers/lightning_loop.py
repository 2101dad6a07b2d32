"""A LightningModule in @hydra.main under Hydra's joblib launcher, as in lightning-hydra-template, with MLFlowLogger."""

import logging
import warnings

import hydra
import lightning as L
import torch
from common import datasets, mlp
from lightning.pytorch.loggers import MLFlowLogger
from omegaconf import DictConfig, OmegaConf
from torch.nn import functional as F
from torch.utils.data import DataLoader


class Classifier(L.LightningModule):
    def __init__(self, example, hidden_sizes, optimizer, epochs, lrs):
        super().__init__()
        self.model = mlp(example, hidden_sizes)
        self.optimizer, self.epochs, self.lrs = optimizer, epochs, lrs

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def test_step(self, batch, batch_idx):
        x, y = batch
        logits = self.model(x)
        self.log_dict({"test_loss": F.cross_entropy(logits, y), "test_acc": (logits.argmax(1) == y).float().mean()})

    def configure_optimizers(self):
        optimizer = getattr(torch.optim, self.optimizer)(self.parameters(), lr=self.lrs[0])
        factor = self.lrs[1] / self.lrs[0]
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [self.epochs[0]], gamma=factor)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    L.seed_everything(cfg.seed)
    train, test = datasets(cfg.dataset, cfg.root)
    module = Classifier(train[0][0], list(cfg.hidden_sizes), cfg.optimizer, list(cfg.epochs), (cfg.lr_0, cfg.lr_1))
    logger = MLFlowLogger(experiment_name="peers", tracking_uri=cfg.tracking_uri)
    logger.log_hyperparams(OmegaConf.to_container(cfg))
    trainer = L.Trainer(
        max_epochs=sum(cfg.epochs), accelerator="cpu", devices=1, logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(train, batch_size=cfg.batch_size, shuffle=True))
    (result,) = trainer.test(module, DataLoader(test, batch_size=1024), verbose=False)
    return result["test_acc"]


if __name__ == "__main__":
    main()
