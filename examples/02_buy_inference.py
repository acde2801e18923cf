"""A device asks a market what an inference on the edge would cost, bids if that is worth it, and learns whether it is served."""

from pathlib import Path
from tempfile import mkdtemp

from nmoe.market.service import MarketClient, MarketServer, MarketSettings

need = {"workload": "resnet50", "accuracy": 0.7, "latency_s": 0.2, "tasks": 1, "device_flops": 10e9, "uplink_bps": 20e6}
worth = 3.0  # to this device, for one session

# Usually elsewhere: NMOE_OPERATOR_TOKEN=... nmoe market serve --database market.sqlite --epoch-s 2 --mechanism aeria-ef
server = MarketServer(Path(mkdtemp()) / "market.sqlite", "127.0.0.1", 0, settings=MarketSettings(epoch_s=2, mechanism="aeria-ef"))
try:
    with MarketClient(f"http://{server.start()}", timeout_s=2.0) as market:
        quote = market.quote(**need)
        print(f"needs {quote['demand'] / 1e9:.1f} GFLOP/s of the edge: cut after layer {quote['partition']}, exit {quote['exit']}")
        if quote["place"] == "edge" and worth >= quote["least_payment"]:  # truthful: bid what it is worth, whatever others paid before
            receipts = [market.bid(f"device-{number}", worth + number, **need) for number in range(4)]
            for receipt in receipts:
                told = market.outcome(receipt, within_s=10)
                print(f"said  {told['id']}: served {told['served']}, pays {told['payment']:.2f}, {told['reason']}")
            again = market.quote(**need)
            print(f"the last price was {again['last_payment']:.2f} for that need")
finally:
    server.stop()
