from __future__ import annotations

from convoy.contract.manifest import Manifest, ModelInterface
from convoy.serving.repository.config import interface_of, make_config
from convoy.serving.repository.configuration import ConfigText


def test_a_reader_is_warmed_up_at_its_narrowest_and_its_widest_and_has_no_labels_of_outputs(tmp_path, write_reader) -> None:
    manifest = Manifest.load(write_reader(tmp_path, sealed=True) / "1" / "manifest.json")
    config = make_config(manifest, "check-reader", 1)
    assert [one.dims for one in config.input] == [(8, -1, 1), (1,)]
    assert all(not one.label_filename for one in config.output)
    warmups = {one.name: (one.batch_size, one.inputs["image"].dims, one.inputs["width"].dims) for one in config.model_warmup}
    assert warmups == {"batch of 1, 16 columns": (1, (8, 16, 1), (1,)), "batch of 8, 64 columns": (8, (8, 64, 1), (1,))}
    message = ConfigText(config.to_text().text).message
    interface = interface_of(message, tmp_path)
    assert isinstance(interface, ModelInterface)
    assert interface == manifest.interface
