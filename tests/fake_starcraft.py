"""A stand-in for the StarCraft II program: a websocket on a port that plays a coarse battle of SMACv2's messages.

`install(folder)` lays out what SC2PATH points to. How the game behaves is set by environment variables:
FAKE_SC2_DAMAGE, hit points per hit of allies and enemies ("9 6"); FAKE_SC2_CRASH, "n file": exit at the n-th step
request if the file is not there, and make it ("n -": each game does); FAKE_SC2_HIDDEN, how many observations after a
debug command do not show the new units yet; FAKE_SC2_LOG, a folder in which every game leaves a file named by its
process id, in it one line a request.
"""

import base64
import hashlib
import math
import os
import socket
import struct
import sys
import warnings
from pathlib import Path

SIZE = 32
N_TYPES = 2009  # types that the game knows; SMACv2 takes the last nine for the allies
ALLY_TYPES = "baneling colossus hydralisk marauder marine medivac stalker zealot zergling".split()
ENEMY_TYPES = {9: "baneling", 4: "colossus", 107: "hydralisk", 51: "marauder", 48: "marine", 54: "medivac"}
ENEMY_TYPES |= {74: "stalker", 73: "zealot", 105: "zergling"}
HEALTH = {"baneling": 30, "colossus": 200, "hydralisk": 90, "marauder": 125, "marine": 45, "medivac": 150}
HEALTH |= {"stalker": 80, "zealot": 100, "zergling": 35}
SHIELD = {"colossus": 150, "stalker": 80, "zealot": 50}
MOVE, ATTACK, HEAL = 16, 23, 386  # abilities
SPEED, RANGE = 1.5, 6.0  # per step request
LAUNCHED, INIT_GAME, IN_GAME, QUIT = 1, 2, 3, 5  # of sc2api.proto's Status


def install(folder: Path) -> Path:
    """A folder for SC2PATH, whose program runs this file with this interpreter."""
    program = folder / "Versions" / "Base90000" / "SC2_x64"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    program.chmod(0o755)
    map_file = folder / "Maps" / "SMAC_Maps" / "32x32_flat.SC2Map"
    map_file.parent.mkdir(parents=True)
    map_file.write_bytes(b"flat")
    return folder


class Game:
    """Units on a square; each step request they move, hit and die. No random numbers."""

    def __init__(self, messages):
        self.messages = messages
        self.units, self.orders, self.next_tag, self.loop, self.steps, self.hidden = {}, {}, 1, 0, 0, 0
        self.status = LAUNCHED
        self.damage = [float(x) for x in os.environ.get("FAKE_SC2_DAMAGE", "9 6").split()]

    def answer(self, request):
        """The response to one request; None to quit."""
        kind = request.WhichOneof("request")
        if kind == "quit":
            return None
        response = self.messages.Response(id=request.id)
        part = getattr(response, kind)
        part.SetInParent()
        getattr(self, kind)(getattr(request, kind), part)
        response.status = self.status
        return response

    def ping(self, request, response):
        response.game_version, response.base_build = "5.0.0", 90000

    def create_game(self, request, response):
        self.status = INIT_GAME

    def join_game(self, request, response):
        self.status, response.player_id = IN_GAME, 1

    def game_info(self, request, response):
        raw = response.start_raw
        raw.map_size.x = raw.map_size.y = raw.playable_area.p1.x = raw.playable_area.p1.y = SIZE
        raw.playable_area.p0.x = raw.playable_area.p0.y = 0
        raw.pathing_grid.bits_per_pixel, raw.pathing_grid.data = 1, b"\xff" * (SIZE * SIZE // 8)
        raw.terrain_height.bits_per_pixel, raw.terrain_height.data = 8, b"\x7f" * SIZE * SIZE

    def data(self, request, response):
        for unit_id in range(N_TYPES):
            response.units.add(unit_id=unit_id)

    def debug(self, request, response):
        self.hidden = int(os.environ.get("FAKE_SC2_HIDDEN", "0"))
        for command in request.debug:
            for tag in command.kill_unit.tag:
                self.units.pop(tag, None)
            if command.HasField("create_unit"):
                self.create(command.create_unit)

    def create(self, new):
        ally = new.owner == 1
        kind = ALLY_TYPES[new.unit_type - (N_TYPES - 9)] if ally else ENEMY_TYPES[new.unit_type]
        health, shield = HEALTH[kind], SHIELD.get(kind, 0)
        unit = {"tag": self.next_tag, "unit_type": new.unit_type, "owner": new.owner, "energy": 50}
        unit |= {"health": health, "health_max": health, "shield": shield, "shield_max": shield}
        self.units[self.next_tag] = unit | {"x": new.pos.x, "y": new.pos.y, "medic": kind == "medivac"}
        self.next_tag += 1

    def action(self, request, response):
        for action in request.actions:
            order = action.action_raw.unit_command
            for tag in order.unit_tags:
                self.orders[tag] = order
            response.result.append(1)

    def step(self, request, response):
        self.steps += 1
        self.loop += request.count
        if request.count > 2:  # a step of an episode; others only wait for units
            self.crash()
            for tag, unit in list(self.units.items()):
                if unit["owner"] == 1:
                    self.obey(unit, self.orders.get(tag))
                elif not unit["medic"]:
                    self.hunt(unit)
            self.units = {tag: unit for tag, unit in self.units.items() if unit["health"] > 0}
        self.orders.clear()

    def crash(self):
        when, _, flag = os.environ.get("FAKE_SC2_CRASH", "").partition(" ")
        if when and self.steps >= int(when) and not Path(flag).exists():
            if flag != "-":
                Path(flag).touch()
            os._exit(1)

    def obey(self, unit, order):
        if order is None:
            return
        if order.ability_id == MOVE:
            self.move(unit, order.target_world_space_pos.x, order.target_world_space_pos.y)
        target = self.units.get(order.target_unit_tag)
        if target and order.ability_id == ATTACK:
            self.hit(target, self.damage[0])
        if target and order.ability_id == HEAL:
            target["health"] = min(target["health_max"], target["health"] + 5)

    def hunt(self, unit):
        allies = [other for other in self.units.values() if other["owner"] == 1 and other["health"] > 0]
        if not allies:
            return
        prey = min(allies, key=lambda other: (distance(unit, other), other["tag"]))
        if distance(unit, prey) <= RANGE:
            self.hit(prey, self.damage[1])
        else:
            self.move(unit, prey["x"], prey["y"])

    def hit(self, unit, damage):
        absorbed = min(unit["shield"], damage)
        unit["shield"] -= absorbed
        unit["health"] = max(0.0, unit["health"] - damage + absorbed)

    def move(self, unit, x, y):
        far = math.hypot(x - unit["x"], y - unit["y"])
        part = min(1.0, SPEED / far) if far else 0.0
        unit["x"] = min(SIZE - 0.5, max(0.5, unit["x"] + part * (x - unit["x"])))
        unit["y"] = min(SIZE - 0.5, max(0.5, unit["y"] + part * (y - unit["y"])))

    def observation(self, request, response):
        response.observation.game_loop = self.loop
        raw = response.observation.raw_data
        raw.SetInParent()
        if self.hidden:
            self.hidden -= 1
            return
        for unit in self.units.values():
            shown = raw.units.add(**{name: value for name, value in unit.items() if name not in ("x", "y", "medic")})
            shown.pos.x, shown.pos.y = unit["x"], unit["y"]


def distance(a, b) -> float:
    return math.hypot(a["x"] - b["x"], a["y"] - b["y"])


def read_exactly(connection, n: int) -> bytes:
    data = b""
    while len(data) < n:
        part = connection.recv(n - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def read_frame(connection) -> tuple[int, bytes]:
    """Kind and content of one websocket frame of a client (RFC 6455, section 5.2)."""
    head, length = read_exactly(connection, 2)
    length &= 127
    if length > 125:
        form = ">H" if length == 126 else ">Q"
        length = struct.unpack(form, read_exactly(connection, struct.calcsize(form)))[0]
    mask = read_exactly(connection, 4)
    data = read_exactly(connection, length)
    key = (mask * (length // 4 + 1))[:length]
    return head & 15, (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(length, "big")


def write_frame(connection, data: bytes) -> None:
    n = len(data)
    size = bytes([n]) if n < 126 else b"\x7e" + struct.pack(">H", n) if n < 2**16 else b"\x7f" + struct.pack(">Q", n)
    connection.sendall(b"\x82" + size + data)


def shake_hands(connection) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(4096)
    lines = dict(line.split(": ", 1) for line in request.decode().split("\r\n") if ": " in line)
    proof = hashlib.sha1(lines["Sec-WebSocket-Key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    accept = base64.b64encode(proof).decode()
    connection.sendall(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
    )


def main(arguments: list[str]) -> None:
    """Serve one client until it quits or goes away."""
    server = socket.create_server(("127.0.0.1", int(arguments[arguments.index("-port") + 1])))
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
    warnings.simplefilter("ignore")
    from s2clientprotocol import sc2api_pb2

    log = None
    if folder := os.environ.get("FAKE_SC2_LOG"):
        log = (Path(folder) / str(os.getpid())).open("w", buffering=1)
    connection = server.accept()[0]
    shake_hands(connection)
    game = Game(sc2api_pb2)
    while True:
        kind, data = read_frame(connection)
        if kind == 8:  # closed by the client: the game stays, as the real one does
            continue
        request = sc2api_pb2.Request.FromString(data)
        if log:
            log.write(f"{request.WhichOneof('request')} {request.create_game.random_seed}\n")
        response = game.answer(request)
        if response is None:
            return
        write_frame(connection, response.SerializeToString())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except EOFError:
        while True:  # its client is gone without a word: the real game would go on too
            __import__("time").sleep(1)
