// Two toys. The rules are those of the real system, the rest is decoration.
"use strict";

function logger(toy) {
  const box = toy.querySelector(".log");
  return (text, kind = "") => {
    const line = document.createElement("div");
    line.className = kind;
    line.textContent = text;
    box.append(line);
    while (box.children.length > 60) box.firstChild.remove();
    box.scrollTop = box.scrollHeight;
  };
}

// The disk. A block is free, belongs to somebody, or is dying: freed, but still pointed at by what is on disk.
{
  const toy = document.getElementById("disk");
  const grid = toy.querySelector(".grid");
  const say = logger(toy);
  const name = { a: "Amber FS", b: "Teal FS" };
  const blocks = Array.from({ length: 64 }, () => ({ owner: "", dying: false }));
  blocks[0].owner = "root";
  let me = "a";

  function owned(who, disk = blocks) {
    return new Set(disk.flatMap((block, at) => (block.owner === who ? [at] : [])));
  }

  // What the kernel does: change a copy, compare what is owned before and after, and look at the free map.
  function modify(who, asked, change) {
    const copy = blocks.map((block) => ({ ...block }));
    change(copy);
    const before = owned(who);
    const gained = [...owned(who, copy)].filter((at) => !before.has(at));
    if (gained.length !== asked.length || gained.some((at) => !asked.includes(at))) {
      return `you asked for {${asked}} but the copy owns {${gained}} more`;
    }
    for (const at of gained) {
      if (blocks[at].dying) return `block ${at} will be free, but is still pointed at on disk: flush first`;
      if (blocks[at].owner) return `block ${at} is not free`;
    }
    change(blocks);
    return "";
  }

  function draw() {
    blocks.forEach((block, at) => {
      const cell = grid.children[at];
      cell.className = block.dying ? "dying" : block.owner;
      cell.title = block.dying ? "will-free" : block.owner === "root" ? "root catalogue" : name[block.owner] ?? "free";
      cell.setAttribute("aria-label", `block ${at}, ${cell.title}`);
    });
  }

  function refuse(at, why) {
    say(`refused: ${why}`, "bad");
    const cell = grid.children[at];
    cell.classList.remove("no");
    void cell.offsetWidth;
    cell.classList.add("no");
  }

  blocks.forEach((_, at) => {
    const cell = document.createElement("button");
    cell.textContent = at;
    cell.addEventListener("click", () => {
      const block = blocks[at];
      if (block.owner === me) {
        block.owner = "";
        block.dying = true;
        say(`${name[me]} lets go of block ${at}; will-free until flushed`);
        draw();
        return;
      }
      const why = modify(me, [at], (disk) => { disk[at].owner = me; });
      if (why) return refuse(at, why);
      say(`${name[me]} owns block ${at}`, "good");
      draw();
    });
    grid.append(cell);
  });

  for (const button of toy.querySelectorAll("[data-who]")) {
    button.addEventListener("click", () => {
      me = button.dataset.who;
      for (const other of toy.querySelectorAll("[data-who]")) other.setAttribute("aria-pressed", other === button);
    });
  }

  toy.querySelector("[data-flush]").addEventListener("click", () => {
    const count = blocks.filter((block) => block.dying).length;
    for (const block of blocks) block.dying = false;
    say(`flush: ${count} block${count === 1 ? "" : "s"} free at last`);
    draw();
  });

  toy.querySelector("[data-forge]").addEventListener("click", () => {
    const wanted = [...new Set(Array.from({ length: 6 }, () => Math.floor(Math.random() * 64)))];
    const extra = Math.random() < 0.5 ? [Math.floor(Math.random() * 64)] : [];
    const why = modify(me, wanted, (disk) => { for (const at of [...wanted, ...extra]) disk[at].owner = me; });
    if (why) return refuse(wanted[0], why);
    say(`${name[me]} got {${wanted}} all at once`, "good");
    draw();
  });

  say("The root catalogue sits in block 0. All the rest is yours to fight over.");
  draw();
}

// The network: filters as lists of (field, value); the most specific one that matches wins, the owner gets the rest.
{
  const toy = document.getElementById("net");
  const say = logger(toy);
  const programs = [
    { name: "owner of 10.42.0.2", filter: { ip: "10.42.0.2" }, on: true },
    { name: "web server, port 80", filter: { ip: "10.42.0.2", proto: "tcp", port: 80 }, on: true },
    { name: "echo, port 7", filter: { ip: "10.42.0.2", proto: "udp", port: 7 }, on: false },
    { name: "one client only", filter: { ip: "10.42.0.2", proto: "tcp", port: 80, from: "10.42.0.9" }, on: false },
  ];
  const nobody = { name: "nobody: dropped", count: 0 };
  const lanes = toy.querySelector(".lanes");

  function classify(packet) {
    let best = null;
    for (const program of programs) {
      const atoms = Object.entries(program.filter);
      if (!program.on || !atoms.every(([field, value]) => packet[field] === value)) continue;
      if (!best || atoms.length > Object.keys(best.filter).length) best = program;
    }
    return best ?? nobody;
  }

  for (const program of [...programs, nobody]) {
    program.count = 0;
    const lane = document.createElement("div");
    lane.className = program === nobody ? "lane drop" : "lane";
    lane.innerHTML = '<span></span><div class="track"><div class="fill"></div></div><output>0</output>';
    lane.firstChild.textContent = program.name;
    program.lane = lane;
    lanes.append(lane);
    if (program === nobody) continue;
    const button = document.createElement("button");
    button.textContent = program.name;
    button.setAttribute("aria-pressed", program.on);
    button.addEventListener("click", () => {
      program.on = !program.on;
      button.setAttribute("aria-pressed", program.on);
      say(`${program.on ? "insert" : "remove"} ${Object.entries(program.filter).map((atom) => atom.join("=")).join(" ∧ ")}`);
    });
    toy.querySelector(".row").append(button);
  }

  const pick = (...choices) => choices[Math.floor(Math.random() * choices.length)];
  setInterval(() => {
    if (document.hidden) return;
    for (const program of [...programs, nobody]) program.count *= 0.9;
    for (let i = 0; i < 12; i++) {
      const proto = pick("tcp", "tcp", "udp");
      classify({
        ip: pick("10.42.0.2", "10.42.0.2", "10.42.0.2", "10.42.0.3"),
        proto,
        port: pick(80, 80, 7, 22),
        from: pick("10.42.0.9", "10.42.0.10", "10.42.0.11"),
      }).count++;
    }
    for (const { lane, count } of [...programs, nobody]) {
      lane.querySelector(".fill").style.width = `${Math.min(100, count)}%`;
      lane.querySelector("output").textContent = Math.round(count);
    }
  }, 200);
  say("Traffic is running: most of it for 10.42.0.2, a little for an address that nobody owns.");
}
