"use strict";
(() => {
  const $ = id => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const GUTTER = 122, AXIS = 30, PAD = 8, ROWS = 8, CURVES = 132, RIGHT = 12, COLUMN = 2;
  const COLOURS = 8, DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3]];
  const TICKS = [.05, .1, .2, .5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
  const MOST_ROWS = 500, CLOSEST_S = 0.5, FEW_CLASSES = 8, USUAL_FPS = 25;
  const player = $("video"), canvas = $("canvas"), timeline = $("timeline");
  const pen = canvas.getContext("2d");
  const state = {
    video: null, lanes: [], time: 0, from: 0, to: 1, threshold: data.threshold, hidden: new Set(),
    playable: true, mistakes: false,
  };
  const judged = data.videos.some(video => video.lanes.some(lane => lane.marks));
  let theme = {}, width = 0, height = 0, waiting = false;

  // ---- Segments ----------------------------------------------------------------------------

  // Rows are given out from the best segment down, so that those of the weak, which the slider
  // hides first, move none of the others.
  function laneOf({ name, segments, truth, marks }) {
    const found = segments.map(([kind, start, end, score], place) => ({ kind, start, end, score: score ?? 1, mark: marks?.[place] }));
    found.sort((a, b) => b.score - a.score || a.start - b.start);
    const rows = Array.from({ length: ROWS }, () => []);
    for (const each of found) {
      const free = rows.findIndex(row => row.every(o => o.end <= each.start || o.start >= each.end));
      each.row = free < 0 ? ROWS - 1 : free;
      rows[each.row].push(each);
    }
    return { name: name[0].toUpperCase() + name.slice(1), own: name, truth, segments: found };
  }

  // A truth's mark is the score that it is found with, a detection's the number of its verdict.
  const isMissed = mark => mark === null || mark < state.threshold;
  const isWrong = (lane, { mark }) => lane.truth ? isMissed(mark) : mark > 0;
  const counts = (lane, s) => (lane.truth || s.score >= state.threshold) && (!state.mistakes || isWrong(lane, s));
  const shown = lane => lane.segments.filter(s => counts(lane, s) && !state.hidden.has(s.kind));

  // ---- Where things are --------------------------------------------------------------------

  const x = time => GUTTER + (time - state.from) / (state.to - state.from) * (width - GUTTER - RIGHT);
  const timeAt = left => clamp(
    state.from + (left - GUTTER) / (width - GUTTER - RIGHT) * (state.to - state.from), 0, state.video.duration);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // Rows are high enough for words as long as they are few.
  function places() {
    let top = AXIS;
    return state.lanes.map(lane => {
      const rows = 1 + Math.max(0, ...shown(lane).map(s => s.row));
      const each = rows > 2 ? 16 : 25, needed = Math.max(2, rows * each / 25) * 25 + 2 * PAD;
      const place = { lane, top, height: needed, first: top + (needed - rows * each) / 2, each };
      top += needed;
      return place;
    });
  }

  function bars() {
    return places().flatMap(({ lane, first, each }) =>
      shown(lane).filter(s => s.end >= state.from && s.start <= state.to).map(segment => {
        const left = Math.max(x(segment.start), GUTTER), right = Math.min(x(segment.end), width - RIGHT);
        return {
          segment, lane, left, top: first + segment.row * each,
          width: Math.max(2, right - left), height: each - 2,
        };
      }));
  }

  // ---- Words -------------------------------------------------------------------------------

  function clock(seconds, places = 2) {
    const parts = 10 ** places, whole = Math.round(seconds * parts);
    const s = Math.floor(whole / parts), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
    const start = h ? `${h}:${String(m).padStart(2, "0")}` : `${m}`;
    const rest = places ? "." + String(whole % parts).padStart(places, "0") : "";
    return `${start}:${String(s % 60).padStart(2, "0")}${rest}`;
  }

  const label = kind => data.classes[kind];
  const scored = ({ truth }, { score }) => truth ? "" : score.toFixed(2);
  const curvesHeight = () => state.video.curves.times.length ? CURVES : 0;

  function verdict(lane, segment) {
    if (segment.mark === undefined) return "";
    if (!lane.truth) return data.verdicts[segment.mark];
    return isMissed(segment.mark) ? "missed" : `found with score ${segment.mark.toFixed(2)}`;
  }

  function element(name, text, className) {
    const made = document.createElement(name);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  // ---- Drawing -----------------------------------------------------------------------------

  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    const colour = name => style.getPropertyValue(`--${name}`).trim();
    theme = Object.fromEntries(["ground", "panel", "ink", "quiet", "line", "halo", "bad"].map(n => [n, colour(n)]));
    theme.classes = Array.from({ length: COLOURS }, (_, number) => colour(`c${number}`));
    theme.patterns = [0, 1, 2, 3].map(pattern);
  }

  function pattern(number) {
    if (!number) return null;
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const brush = tile.getContext("2d");
    brush.strokeStyle = brush.fillStyle = theme.ink;
    brush.globalAlpha = 0.42;
    brush.lineWidth = 1.6;
    for (const shift of [-8, 0, 8]) {
      brush.beginPath();
      if (number === 1) { brush.moveTo(shift, 8); brush.lineTo(shift + 8, 0); }
      if (number === 2) { brush.moveTo(shift, 0); brush.lineTo(shift + 8, 8); }
      brush.stroke();
    }
    if (number === 3) { brush.beginPath(); brush.arc(4, 4, 1.7, 0, 7); brush.fill(); }
    return pen.createPattern(tile, "repeat");
  }

  const colourOf = kind => theme.classes[kind % COLOURS];
  const patternOf = kind => (kind + Math.floor(kind / COLOURS)) % 4;

  function fill(brush, kind, alpha, left, top, w, h) {
    brush.globalAlpha = 1;
    brush.fillStyle = theme.ground;
    brush.fillRect(left, top, w, h);
    brush.globalAlpha = 0.1 + 0.9 * alpha;
    brush.fillStyle = colourOf(kind);
    brush.fillRect(left, top, w, h);
    if (patternOf(kind)) {
      brush.fillStyle = theme.patterns[patternOf(kind)];
      brush.fillRect(left, top, w, h);
    }
    brush.globalAlpha = 1;
    brush.strokeStyle = colourOf(kind);
    brush.lineWidth = 1;
    if (w > 2 && h > 2) brush.strokeRect(left + 0.5, top + 0.5, w - 1, h - 1);
  }

  function write(text, left, top, { size = 12, colour = theme.ink, align = "left", bold = false, halo = false } = {}) {
    pen.font = `${bold ? 600 : 400} ${size}px system-ui, sans-serif`;
    pen.textAlign = align;
    pen.textBaseline = "middle";
    if (halo) {
      pen.lineWidth = 3;
      pen.lineJoin = "round";
      pen.strokeStyle = theme.halo;
      pen.strokeText(text, left, top);
    }
    pen.fillStyle = colour;
    pen.fillText(text, left, top);
  }

  function fitting(text, room, size) {
    pen.font = `600 ${size}px system-ui, sans-serif`;
    if (pen.measureText(text).width <= room) return text;
    let kept = text;
    while (kept && pen.measureText(kept + "…").width > room) kept = kept.slice(0, -1);
    return kept ? kept + "…" : "";
  }

  function drawBar({ segment, lane, left, top, width: w, height: h }) {
    fill(pen, segment.kind, segment.score, left, top, w, h);
    if (isWrong(lane, segment)) {
      pen.fillStyle = theme.bad;
      pen.fillRect(left, top, w, 3);
    }
    const size = Math.min(12, h - 2), number = `${segment.kind + 1}`;
    if (size < 8 || w < 3 + 0.62 * size * number.length) return;
    const wrong = isWrong(lane, segment);
    const named = `${wrong ? "✕ " : ""}${number} ${label(segment.kind)}`, room = w - 9;
    const whole = `${named} ${scored(lane, segment)} ${wrong ? verdict(lane, segment) : ""}`.replace("  ", " ").trim();
    const text = fitting(whole, room, size) === whole ? whole : w > 44 ? fitting(named, room, size) : number;
    const [at, align] = text === number ? [left + Math.min(w / 2, 9), "center"] : [left + 5, "left"];
    write(text, at, top + h / 2 + 0.5, { size, align, bold: true, halo: true });
  }

  function drawAxis() {
    const room = (state.to - state.from) / (width - GUTTER - RIGHT) * 84;
    const step = TICKS.find(tick => tick >= room) ?? TICKS.at(-1) * Math.ceil(room / TICKS.at(-1));
    const digits = step < 0.1 ? 2 : step < 1 ? 1 : 0;
    pen.strokeStyle = theme.line;
    pen.lineWidth = 1;
    for (let tick = Math.ceil(state.from / step); tick * step <= state.to + 1e-9; tick++) {
      const at = Math.round(x(tick * step)) + 0.5;
      pen.beginPath();
      pen.moveTo(at, AXIS - 6);
      pen.lineTo(at, height);
      pen.stroke();
      write(clock(tick * step, digits), clamp(at, GUTTER, width - 26), AXIS / 2 - 1, { colour: theme.quiet, align: "center" });
    }
    write("time", 12, AXIS / 2 - 1, { colour: theme.quiet });
  }

  function drawLanes() {
    for (const { lane, top, height: high } of places()) {
      const count = shown(lane).length, middle = top + high / 2;
      pen.fillStyle = theme.line;
      pen.fillRect(0, top, width, 1);
      write(fitting(lane.name, GUTTER - 18, 13), 12, middle - 9, { size: 13, bold: true });
      write(`${count} of ${lane.segments.length}`, 12, middle + 9, { colour: theme.quiet });
      if (!count) {
        const why = !lane.segments.length ? "none" : state.mistakes ? "no mistakes at this threshold" : "none at this threshold";
        write(why, GUTTER + 12, middle, { colour: theme.quiet });
      }
    }
    // The surest stand in front.
    bars().sort((a, b) => a.segment.score - b.segment.score).forEach(drawBar);
  }

  function drawCurves() {
    if (!curvesHeight()) return;
    const { times, scores } = state.video.curves;
    const top = height - CURVES, low = height - 12, high = top + 18, y = score => low - score * (low - high);
    pen.fillStyle = theme.line;
    pen.fillRect(0, top, width, 1);
    write("Scores", 12, top + CURVES / 2 - 9, { size: 13, bold: true });
    write(fitting(state.video.main, GUTTER - 44, 12), 12, top + CURVES / 2 + 9, { colour: theme.quiet });
    for (const score of [0, 0.5, 1]) write(score.toFixed(1), GUTTER - 8, y(score), { size: 11, colour: theme.quiet, align: "right" });
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER, top + 1, width - GUTTER - RIGHT, CURVES - 2);
    pen.clip();
    pen.strokeStyle = theme.quiet;
    pen.lineWidth = 1;
    pen.setLineDash([1, 3]);
    pen.beginPath();
    pen.moveTo(GUTTER, y(state.threshold));
    pen.lineTo(width, y(state.threshold));
    pen.stroke();
    const peaks = [];
    for (const [kind, row] of Object.entries(scores).map(([k, r]) => [Number(k), r])) {
      if (state.hidden.has(kind) || Math.max(...row) < 1000 * state.threshold) continue;
      pen.strokeStyle = colourOf(kind);
      pen.setLineDash(DASHES[patternOf(kind)]);
      pen.lineWidth = 1.8;
      pen.beginPath();
      let peak = null, best = 0, column = null;
      row.forEach((thousandths, bin) => {
        if (times[bin + 1] < state.from || times[bin] > state.to) return;
        const middle = (times[bin] + times[bin + 1]) / 2, left = x(middle);
        // Bins that share a column of the screen are one point, the highest.
        if (column !== null && Math.floor(left / COLUMN) !== column) {
          pen.lineTo((column + 0.5) * COLUMN, y(best / 1000));
          best = 0;
        }
        column = Math.floor(left / COLUMN);
        best = Math.max(best, thousandths);
        if (middle >= state.from && middle <= state.to && (!peak || thousandths > peak.thousandths))
          peak = { kind, thousandths, left };
      });
      if (column !== null) pen.lineTo((column + 0.5) * COLUMN, y(best / 1000));
      pen.stroke();
      if (peak && peak.thousandths >= 1000 * state.threshold) peaks.push(peak);
    }
    pen.setLineDash([]);
    const taken = [];
    for (const { kind, thousandths, left } of peaks.sort((a, b) => b.thousandths - a.thousandths)) {
      const at = clamp(left, GUTTER + 10, width - RIGHT - 10);
      if (taken.some(other => Math.abs(other - at) < 15)) continue;
      taken.push(at);
      write(`${kind + 1}`, at, Math.max(top + 10, y(thousandths / 1000) - 9), { size: 12, align: "center", bold: true, halo: true });
    }
    pen.restore();
  }

  function draw() {
    waiting = false;
    const ratio = window.devicePixelRatio || 1;
    width = timeline.clientWidth;
    height = AXIS + places().reduce((sum, place) => sum + place.height, 0) + curvesHeight();
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = theme.ground;
    pen.fillRect(0, 0, width, height);
    drawAxis();
    drawLanes();
    drawCurves();
    const share = time => 100 * time / state.video.duration;
    $("part").style.marginLeft = `${share(state.from)}%`;
    $("part").style.width = `${share(state.to - state.from)}%`;
    place();
  }

  function redraw() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  // ---- The moment --------------------------------------------------------------------------

  function place() {
    const at = x(state.time), head = $("playhead");
    head.style.left = `${at}px`;
    head.hidden = at < GUTTER - 1 || at > width - RIGHT + 1;
    head.style.visibility = head.hidden ? "hidden" : "visible";
    $("clock").textContent = `${clock(state.time)} of ${clock(state.video.duration)}`;
    timeline.setAttribute("aria-valuenow", state.time.toFixed(2));
    timeline.setAttribute("aria-valuetext", `${clock(state.time)} of ${clock(state.video.duration)}`);
    const entries = [];
    for (const lane of state.lanes) {
      entries.push(element("li", lane.name, "lane"));
      const here = shown(lane).filter(s => s.start <= state.time && state.time < s.end).slice(0, 6);
      for (const segment of here) {
        const line = element("li", `${segment.kind + 1} ${label(segment.kind)} ${scored(lane, segment)} `);
        line.append(element("span", `${clock(segment.start)} – ${clock(segment.end)}`, "times"));
        entries.push(line);
      }
      if (!here.length) entries.push(element("li", "–"));
    }
    $("here").replaceChildren(...entries);
  }

  function seek(time) {
    state.time = clamp(time, 0, state.video.duration);
    if (state.playable) player.currentTime = state.time;
    follow();
  }

  function follow() {
    const span = state.to - state.from;
    if (state.time < state.from || state.time > state.to) look(state.time - span * 0.1, span);
    place();
  }

  function step() {
    if (player.paused) return;
    state.time = clamp(player.currentTime, 0, state.video.duration);
    follow();
    requestAnimationFrame(step);
  }

  function toggle() {
    if (!state.playable) return;
    if (!player.paused) player.pause();
    else player.play().catch(() => {});
  }

  // Of the lane that matters, and of what it misses where only mistakes are shown.
  function jumps() {
    const own = state.lanes.filter(lane => lane.own === state.video.main || (state.mistakes && lane.truth));
    return (own.length ? own : state.lanes).flatMap(shown).map(s => s.start).sort((a, b) => a - b);
  }

  function jump(direction) {
    const starts = jumps();
    const ahead = starts.filter(start => start > state.time + 0.02);
    const behind = starts.filter(start => start < state.time - 0.02);
    const to = direction > 0 ? ahead[0] : behind.at(-1);
    if (to !== undefined) seek(to);
  }

  // ---- The part that is shown --------------------------------------------------------------

  function look(from, span) {
    const all = state.video.duration;
    span = clamp(span, Math.min(all, CLOSEST_S), all);
    state.from = clamp(from, 0, all - span);
    state.to = state.from + span;
    redraw();
  }

  function zoom(factor, around = state.time) {
    const span = state.to - state.from, wanted = clamp(span * factor, Math.min(state.video.duration, CLOSEST_S), state.video.duration);
    const centre = around < state.from || around > state.to ? (state.from + state.to) / 2 : around;
    look(centre - (centre - state.from) * wanted / span, wanted);
  }

  // ---- What stands around ------------------------------------------------------------------

  function updateLegend() {
    const numbers = new Map();
    for (const lane of state.lanes)
      for (const s of lane.segments)
        if (counts(lane, s)) numbers.set(s.kind, (numbers.get(s.kind) ?? 0) + 1);
    for (const kind of state.hidden) if (!numbers.has(kind)) numbers.set(kind, 0);
    const kinds = [...numbers.keys()].sort((a, b) => a - b);
    const chips = kinds.map(kind => {
      const chip = element("button", "");
      chip.type = "button";
      chip.setAttribute("aria-pressed", String(!state.hidden.has(kind)));
      chip.title = "Press to hide or show";
      const swatch = document.createElement("canvas");
      swatch.width = 26;
      swatch.height = 18;
      fill(swatch.getContext("2d"), kind, 1, 0, 0, 26, 18);
      chip.append(swatch, `${kind + 1} ${label(kind)} (${numbers.get(kind)})`);
      chip.onclick = () => {
        if (!state.hidden.delete(kind)) state.hidden.add(kind);
        update();
        [...$("legend").children][kinds.indexOf(kind)]?.focus();
      };
      return chip;
    });
    if (kinds.length > FEW_CLASSES) {
      const all = element("button", state.hidden.size ? "Show all" : "Hide all");
      all.type = "button";
      all.onclick = () => {
        state.hidden = new Set(state.hidden.size ? [] : kinds);
        update();
        $("legend").lastChild.focus();
      };
      chips.push(all);
    }
    $("legend").replaceChildren(...chips);
  }

  function updateTable() {
    if (!$("listing").open) return;
    const rows = state.lanes.flatMap(lane => shown(lane).map(segment => ({ lane, segment })));
    rows.sort((a, b) => a.segment.start - b.segment.start);
    $("rows").replaceChildren(...rows.slice(0, MOST_ROWS).map(({ lane, segment }) => {
      const row = document.createElement("tr"), start = document.createElement("td"), go = element("button", clock(segment.start));
      go.type = "button";
      go.setAttribute("aria-label", `Go to ${clock(segment.start)}`);
      go.onclick = () => seek(segment.start);
      start.append(go);
      row.append(element("td", lane.name), element("td", `${segment.kind + 1} ${label(segment.kind)}`), start,
        element("td", clock(segment.end)), element("td", scored(lane, segment) || "–"));
      if (judged) row.append(element("td", verdict(lane, segment) || "–"));
      return row;
    }));
    const left = rows.length - MOST_ROWS;
    $("more").textContent = left > 0 ? `… and ${left} more; raise the threshold to see them` : "";
  }

  // Counts are of all classes and the threshold, whatever else is hidden.
  function tally({ lanes }) {
    const sum = { actions: 0, missed: 0, found: 0, wrong: 0 };
    for (const { truth, segments, marks } of lanes) {
      if (!marks) continue;
      segments.forEach(([, , , score], place) => {
        if (truth) { sum.actions++; sum.missed += isMissed(marks[place]); }
        else if (score >= state.threshold) { sum.found++; sum.wrong += marks[place] > 0; }
      });
    }
    return sum;
  }

  function updateTallies() {
    if (!judged) return;
    const rows = data.videos.map((video, number) => ({ number, name: video.name, ...tally(video) }));
    rows.forEach(({ number, name, missed, actions }) => {
      $("videos").options[number].text = `${name} (${missed} of ${actions} missed)`;
    });
    if (!$("tally").open) return;
    rows.sort((a, b) => b.missed - a.missed || b.wrong - a.wrong);
    $("tallies").replaceChildren(...rows.slice(0, MOST_ROWS).map(({ number, name, actions, missed, found, wrong }) => {
      const row = document.createElement("tr"), first = document.createElement("td"), go = element("button", name);
      go.type = "button";
      go.onclick = () => { $("videos").selectedIndex = number; open(number); scrollTo(0, 0); };
      first.append(go);
      row.append(first, ...[actions, missed, found, wrong].map(count => element("td", `${count}`, "number")));
      return row;
    }));
    const left = rows.length - MOST_ROWS;
    $("more-videos").textContent = left > 0 ? `… and ${left} more with fewer misses; the list above the picture has all` : "";
  }

  function update() {
    $("level").textContent = state.threshold.toFixed(2);
    const found = state.lanes.filter(lane => !lane.truth);
    const count = found.reduce((sum, lane) => sum + shown(lane).length, 0);
    const all = found.reduce((sum, lane) => sum + lane.segments.length, 0);
    const { missed, actions } = tally(state.video);
    $("count").textContent = `${count} of ${all} segments${judged ? `, ${missed} of ${actions} actions missed` : ""}`;
    updateLegend();
    updateTable();
    redraw();
  }

  function open(number) {
    const video = data.videos[number];
    Object.assign(state, { video, lanes: video.lanes.map(laneOf), time: 0, from: 0, to: video.duration, playable: true });
    state.time = clamp(jumps()[0] ?? 0, 0, video.duration);
    $("name").textContent = video.name;
    timeline.setAttribute("aria-valuemax", video.duration);
    $("unplayable").hidden = true;
    player.hidden = false;
    $("play").disabled = false;
    if (video.source) {
      player.src = video.source;
      player.currentTime = state.time;
    } else {
      player.removeAttribute("src");
      unplayable();
    }
    update();
  }

  function unplayable() {
    state.playable = false;
    player.hidden = true;
    $("play").disabled = true;
    const { name, source } = state.video;
    const place = source.startsWith("data:") ? "" : `, or the file is no longer at ${decodeURIComponent(source)}`;
    const why = source ? `this browser does not know its format${place}` : "its file is not known";
    $("unplayable").textContent = `${name} cannot be played: ${why}. The timeline works all the same.`;
    $("unplayable").hidden = false;
  }

  // ---- Hands -------------------------------------------------------------------------------

  const leftOf = event => event.clientX - timeline.getBoundingClientRect().left;
  let drag = null;

  timeline.addEventListener("pointerdown", event => {
    if (event.button) return;
    drag = { left: leftOf(event), from: state.from, moved: false };
    timeline.setPointerCapture(event.pointerId);
  });
  timeline.addEventListener("pointermove", event => {
    const left = leftOf(event);
    if (drag && (drag.moved || Math.abs(left - drag.left) > 4)) {
      drag.moved = true;
      const span = state.to - state.from;
      look(drag.from - (left - drag.left) / (width - GUTTER - RIGHT) * span, span);
    }
    tell(event);
  });
  timeline.addEventListener("pointerup", event => {
    if (drag && !drag.moved && leftOf(event) >= GUTTER) seek(timeAt(leftOf(event)));
    drag = null;
  });
  timeline.addEventListener("pointercancel", () => { drag = null; });
  timeline.addEventListener("pointerleave", () => { $("tip").hidden = true; });
  timeline.addEventListener("wheel", event => {
    event.preventDefault();
    const span = state.to - state.from, sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    const turned = (event.deltaX || event.deltaY) * (event.deltaMode ? 30 : 1);
    if (sideways) look(state.from + turned / 800 * span, span);
    else zoom(Math.exp(clamp(event.deltaY * (event.deltaMode ? 30 : 1), -400, 400) * 0.0015), timeAt(leftOf(event)));
  }, { passive: false });

  function tell(event) {
    const box = timeline.getBoundingClientRect(), left = event.clientX - box.left, top = event.clientY - box.top;
    const tip = $("tip");
    tip.hidden = left < GUTTER || drag?.moved;
    if (tip.hidden) return;
    const under = bars().filter(b => left >= b.left - 1 && left <= b.left + b.width + 1 && top >= b.top && top < b.top + b.height);
    under.sort((a, b) => b.segment.score - a.segment.score);
    tip.textContent = under.length
      ? under.slice(0, 4).map(({ lane, segment: s }) =>
        `${s.kind + 1} ${label(s.kind)}\n${clock(s.start)} – ${clock(s.end)} (${(s.end - s.start).toFixed(2)} s)\n${[lane.name, lane.truth ? "" : `score ${s.score.toFixed(3)}`, verdict(lane, s)].filter(Boolean).join(", ")}`).join("\n\n")
      : clock(timeAt(left));
    tip.style.left = `${clamp(left + 14, 0, width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${top + 18}px`;
  }

  $("overview").addEventListener("pointerdown", event => {
    const bar = $("overview");
    bar.setPointerCapture(event.pointerId);
    const move = moved => {
      const box = bar.getBoundingClientRect(), span = state.to - state.from;
      look((moved.clientX - box.left) / box.width * state.video.duration - span / 2, span);
    };
    move(event);
    bar.onpointermove = move;
    bar.onpointerup = () => { bar.onpointermove = null; };
  });

  $("play").onclick = toggle;
  $("previous").onclick = () => jump(-1);
  $("next").onclick = () => jump(1);
  $("in").onclick = () => zoom(0.5);
  $("out").onclick = () => zoom(2);
  $("fit").onclick = () => look(0, state.video.duration);
  $("threshold").oninput = () => { state.threshold = Number($("threshold").value); update(); updateTallies(); };
  $("mistakes").onchange = () => { state.mistakes = $("mistakes").checked; update(); };
  $("tally").ontoggle = updateTallies;
  $("listing").ontoggle = updateTable;
  $("videos").onchange = () => open($("videos").selectedIndex);

  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select")) return;
    if (event.target.closest("input") && /Arrow|Home|End/.test(event.key)) return;
    if ((event.key === " " || event.key === "Enter") && event.target.closest("button, summary, [type=checkbox]")) return;
    const small = event.shiftKey ? 1 / (state.video.fps ?? USUAL_FPS) : 1;
    const keys = {
      " ": toggle,
      ArrowLeft: () => seek(state.time - small), ArrowRight: () => seek(state.time + small),
      Home: () => seek(0), End: () => seek(state.video.duration),
      p: () => jump(-1), n: () => jump(1),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), "−": () => zoom(2), 0: () => look(0, state.video.duration),
    };
    const does = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!does) return;
    event.preventDefault();
    does();
  });

  player.addEventListener("play", () => { $("play").textContent = "❚❚"; $("play").setAttribute("aria-label", "Pause"); step(); });
  player.addEventListener("pause", () => { $("play").textContent = "▶"; $("play").setAttribute("aria-label", "Play"); });
  player.addEventListener("error", unplayable);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readTheme(); update(); });
  new ResizeObserver(redraw).observe(timeline);

  // ---- Begin -------------------------------------------------------------------------------

  $("videos").replaceChildren(...data.videos.map(video => element("option", video.name)));
  $("chooser").hidden = data.videos.length < 2;
  $("threshold").value = state.threshold;
  for (const name of ["filter", "about-mistakes", "verdict", "tally"]) $(name).hidden = !judged;
  $("about-curves").hidden = !data.videos.some(video => video.curves.times.length);
  readTheme();
  updateTallies();
  // The first video in which something is shown.
  const first = Math.max(0, data.videos.findIndex(video => video.lanes.map(laneOf).some(lane => shown(lane).length)));
  $("videos").selectedIndex = first;
  open(first);
  window.timeline = { state, bars, x, seek };
})();
