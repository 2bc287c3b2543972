"use strict";
(() => {
  const about = JSON.parse(document.getElementById("about").textContent);
  const at = (id) => document.getElementById(id);
  const names = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", PageUp: "PgUp", PageDown: "PgDn" };
  const scheme = location.protocol === "https:" ? "wss://" : "ws://";
  const socket = new WebSocket(scheme + location.host + "/talk");
  let isOver = false, isAsked = false, picture = 0;

  at("title").textContent = about.title;
  for (const word of about.words) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "word";
    const name = document.createElement("span");
    name.className = "name";
    name.append(word);
    if (about.keys[word]) {
      const key = document.createElement("kbd");
      key.textContent = names[about.keys[word]] || about.keys[word];
      name.append(key);
    }
    button.append(name);
    button.addEventListener("click", () => say(word));
    at("words").append(button);
  }
  function say(word) {
    if (!isAsked || socket.readyState !== WebSocket.OPEN) return;
    isAsked = false;
    socket.send(JSON.stringify({ word, picture }));
  }
  function end(text) {
    at("standing").textContent = text;
    for (const button of document.querySelectorAll("button")) button.disabled = true;
  }
  socket.addEventListener("message", (event) => {
    const told = JSON.parse(event.data);
    if ("over" in told) {
      isOver = true;
      end(told.over ? "That was the last episode. Thank you: the result stands in the terminal." : "The evaluation has ended.");
      return;
    }
    if (!told.frame) return;
    document.querySelector("main").hidden = false;
    isAsked = true;
    picture = told.picture;
    at("frame").src = "data:image/jpeg;base64," + told.frame;
    at("prompt").textContent = told.prompt;
    at("standing").textContent = `Episode ${told.episode} of ${about.episodes}: ${told.step} words said, ${told.words_left} left.`;
  });
  socket.addEventListener("close", () => {
    if (isOver) return;
    at("problem").textContent = "The server has ended.";
    end("");
  });
  const byKey = Object.fromEntries(Object.entries(about.keys).map(([word, key]) => [key, word]));
  document.addEventListener("keydown", (event) => {
    const word = byKey[event.key];
    if (!word || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    say(word);
  });
})();
