"use strict";
(() => {
  const about = JSON.parse(document.getElementById("about").textContent);
  const at = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const names = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", PageUp: "PgUp", PageDown: "PgDn" };
  const scheme = location.protocol === "https:" ? "wss://" : "ws://";
  const socket = new WebSocket(scheme + location.host + "/talk");
  let state = null, waiting = 0, running = false, ownTemplate = null;

  at("title").textContent = about.title;
  at("words").append(...about.words.map((word, k) => {
    const button = make("button", { type: "button", class: "word", "data-word": word });
    const name = make("span", { class: "name" });
    name.append(make("span", {}, word));
    if (about.keys[word]) name.append(make("kbd", {}, names[about.keys[word]] || about.keys[word]));
    const track = make("span", { class: "track" });
    track.append(make("div", { class: "fill" }));
    button.append(name, track, make("span", { class: "share" }));
    button.addEventListener("click", () => say(word));
    return button;
  }));

  function ask(message) {
    if (socket.readyState !== WebSocket.OPEN) return;
    waiting += 1;
    socket.send(JSON.stringify(message));
  }
  function say(word) { stop(); ask({ do: "say", word }); }
  function stop() { running = false; at("run").setAttribute("aria-pressed", "false"); at("run").textContent = "let it run"; }
  function run() {
    if (running) { stop(); return; }
    if (!state || state.over) return;
    running = true;
    at("run").setAttribute("aria-pressed", "true");
    at("run").textContent = "stop";
    ask({ do: "advance" });
  }

  socket.addEventListener("message", (event) => {
    const told = JSON.parse(event.data);
    if (told.scene) {
      at("scene").src = "data:image/jpeg;base64," + told.scene;
      return;
    }
    waiting = Math.max(0, waiting - 1);
    at("problem").textContent = told.error || "";
    if (told.error) stop();
    if (!("said" in told)) {
      if (!state) at("task").textContent = told.error;
      return;
    }
    state = told;
    show();
    if (running && !state.over) setTimeout(() => running && ask({ do: "advance" }), 120);
    else if (state.over) stop();
  });
  socket.addEventListener("close", () => {
    stop();
    at("problem").textContent = at("problem").textContent || "The server has ended: start vlm-agent play again, and load this page anew.";
    for (const button of document.querySelectorAll("button")) button.disabled = true;
  });

  function show() {
    document.querySelector("main").hidden = false;
    at("task").textContent = state.sentence;
    at("frame").src = "data:image/jpeg;base64," + state.frame;
    at("beside").hidden = !state.has_scene;
    document.querySelector(".views").classList.toggle("alone", !state.has_scene);
    const best = Math.max(...state.probabilities);
    about.words.forEach((word, k) => {
      const button = at("words").children[k], share = state.probabilities[k];
      button.querySelector(".fill").style.width = (100 * share).toFixed(1) + "%";
      button.querySelector(".share").textContent = (100 * share).toFixed(1) + " %";
      button.classList.toggle("best", share === best);
      button.disabled = state.over;
    });
    at("advance").disabled = at("run").disabled = state.over;
    at("save").disabled = !state.success || state.saved;
    at("thinking").textContent = "scored in " + state.thinking_ms.toFixed(0) + " ms";
    at("value").textContent = state.value === null ? "" : "value " + state.value.toFixed(2);
    const standing = at("standing");
    const outcome = state.success ? "solved" : state.over ? "over, not solved" : state.stage === "none" ? "nothing reached yet" : "reached: " + state.stage;
    standing.replaceChildren(
      document.createTextNode("episode " + state.number + ", " + state.said.length + " words, " + state.words_left + " left, return " + state.return.toFixed(2) + ", "),
      make("span", { class: state.success ? "solved" : "" }, outcome),
    );
    at("notice").textContent = state.notice;
    at("said").replaceChildren(...state.said.map((one) => make("li", { class: one.by, title: one.by + ", reward " + one.reward }, one.word)));
    at("said").scrollTop = at("said").scrollHeight;
    at("prompt").textContent = state.prompt;
    if (ownTemplate === null) {
      ownTemplate = state.template;
      at("template").value = state.template;
    }
    at("own").textContent = state.own_prompt ? "This is not the prompt that the policy learnt with." : "";
  }

  at("advance").addEventListener("click", () => { stop(); ask({ do: "advance" }); });
  at("run").addEventListener("click", run);
  at("next").addEventListener("click", () => { stop(); ask({ do: "begin" }); });
  at("again").addEventListener("click", () => { stop(); ask({ do: "begin", number: state.number }); });
  at("save").addEventListener("click", () => ask({ do: "save" }));
  at("apply").addEventListener("click", () => ask({ do: "prompt", template: at("template").value, instruction: at("instruction").value.trim() || null }));
  at("restore").addEventListener("click", () => {
    at("template").value = ownTemplate;
    at("instruction").value = "";
    ask({ do: "prompt", template: ownTemplate });
  });

  const byKey = Object.fromEntries(Object.entries(about.keys).map(([word, key]) => [key, word]));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA)$/.test(event.target.tagName) || !state) return;
    const isButton = event.target.tagName === "BUTTON";
    const others = { n: () => at("next").click(), r: () => at("again").click(), s: () => at("save").click() };
    if (!isButton) Object.assign(others, { Enter: () => at("advance").click(), " ": run });
    const word = byKey[event.key];
    if (!word && !others[event.key]) return;
    event.preventDefault();
    if (!word) others[event.key]();
    else if (!state.over && waiting < 4) say(word);
  });
})();
