"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const press = (buttons, pressed) =>
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === pressed)));

  // Tables: a click on a header sorts by its column, a second one turns the order round.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const up = before === "none" ? column === 0 : before === "descending";
      heads.forEach((h) => h.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const value = (row) => Number(row.children[column].dataset.value);
      [...body.rows].sort((a, b) => (up ? value(a) - value(b) : value(b) - value(a)))
        .forEach((row) => body.append(row));
    }));
  }

  // Benchmarks: one table at a time.
  const tabs = [...document.querySelectorAll("[data-tab]")];
  const panels = [...document.querySelectorAll("[data-panel]")];
  const showPanel = (tab) => {
    press(tabs, tab);
    panels.forEach((panel) => { panel.hidden = panel.dataset.panel !== tab.dataset.tab; });
  };
  if (tabs.length) {
    tabs[0].parentElement.hidden = false;
    tabs.forEach((tab) => tab.addEventListener("click", () => showPanel(tab)));
    showPanel(tabs[0]);
  }

  // The comparison.
  const viewer = $("viewer");
  if (!viewer) return;
  const data = JSON.parse($("data").textContent);
  const view = $("view"), canvas = $("canvas"), divider = $("divider"), handle = $("handle");
  const left = $("left"), right = $("right");
  const thumbs = [...document.querySelectorAll(".thumbs button")];
  const zooms = [...document.querySelectorAll("[data-zoom]")];
  let current = data.images[0], zoom = "fit", position = 0.5;

  const show = (side, choice) => {
    const image = $(`image-${side}`), source = current.sources[choice];
    image.hidden = !source;
    if (source) {
      image.src = source.src;
      image.alt = `${data.titles[choice]}: ${current.name}`;
    }
    image.classList.toggle("crisp", choice === "lr" || zoom !== "fit");
    $(`said-${side}`).textContent = source ? `${data.titles[choice]} ${source.said}` : "not measured";
  };

  const place = () => {
    const width = view.clientWidth;
    const at = view.scrollLeft + position * width;
    $("image-left").style.clipPath = `inset(0 ${Math.max(0, canvas.offsetWidth - at)}px 0 0)`;
    handle.style.left = `${position * 100}%`;
    divider.value = String(Math.round(position * 100));
    divider.setAttribute("aria-valuetext",
      `${divider.value} % ${data.titles[left.value]}, the rest ${data.titles[right.value]}`);
  };

  // Sizes the picture; `centre` (in its pixels) stays in the middle.
  const size = (centre) => {
    const room = viewer.parentElement.clientWidth;
    const tall = Math.max(240, window.innerHeight * 0.78);
    const fit = Math.min(room / current.width, tall / current.height, 3);
    const factor = zoom === "fit" ? fit : Number(zoom);
    canvas.style.width = `${current.width * factor}px`;
    canvas.style.height = `${current.height * factor}px`;
    view.style.width = `${Math.min(room, current.width * factor)}px`;
    view.style.height = `${Math.min(tall, current.height * factor)}px`;
    view.classList.toggle("zoomed", zoom !== "fit");
    if (centre) {
      view.scrollLeft = centre.x * factor - view.clientWidth / 2;
      view.scrollTop = centre.y * factor - view.clientHeight / 2;
    }
    place();
  };

  const middle = () => {
    const factor = canvas.offsetWidth / current.width;
    return {
      x: (view.scrollLeft + view.clientWidth / 2) / factor,
      y: (view.scrollTop + view.clientHeight / 2) / factor,
    };
  };

  const refresh = (centre) => {
    canvas.style.aspectRatio = "auto";
    show("left", left.value);
    show("right", right.value);
    size(centre);
  };

  const choose = (image, centre) => {
    current = image;
    press(thumbs, thumbs.find((t) => t.dataset.benchmark === image.benchmark
      && Number(t.dataset.index) === image.index));
    refresh(centre || { x: image.width / 2, y: image.height / 2 });
  };

  const setZoom = (value, centre) => {
    zoom = value;
    press(zooms, zooms.find((z) => z.dataset.zoom === value));
    refresh(centre);
  };

  thumbs.forEach((thumb) => thumb.addEventListener("click", () => choose(data.images.find(
    (i) => i.benchmark === thumb.dataset.benchmark && i.index === Number(thumb.dataset.index)))));
  zooms.forEach((button) => button.addEventListener("click", () => setZoom(button.dataset.zoom, middle())));
  left.addEventListener("change", () => refresh());
  right.addEventListener("change", () => refresh());
  $("swap").addEventListener("click", () => {
    [left.value, right.value] = [right.value, left.value];
    refresh();
  });

  divider.addEventListener("input", () => { position = Number(divider.value) / 100; place(); });
  const follow = (event) => {
    const box = view.getBoundingClientRect();
    position = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    place();
  };
  const drag = (target, onMove) => {
    target.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !onMove.wanted(event)) return;
      event.preventDefault();
      divider.focus({ preventScroll: true });
      target.setPointerCapture(event.pointerId);
      onMove.start(event);
      const move = (e) => onMove.move(e);
      const stop = () => {
        target.removeEventListener("pointermove", move);
        target.removeEventListener("pointerup", stop);
        target.removeEventListener("pointercancel", stop);
      };
      target.addEventListener("pointermove", move);
      target.addEventListener("pointerup", stop);
      target.addEventListener("pointercancel", stop);
    });
  };
  drag(handle, { wanted: () => true, start: follow, move: follow });
  let from = null;
  drag(view, {
    // At fit the whole picture moves the divider; above, a mouse pans (touch pans by itself).
    wanted: (event) => zoom === "fit" || event.pointerType === "mouse",
    start: (event) => {
      if (zoom === "fit") follow(event);
      from = { x: event.clientX + view.scrollLeft, y: event.clientY + view.scrollTop };
    },
    move: (event) => {
      if (zoom === "fit") { follow(event); return; }
      view.scrollLeft = from.x - event.clientX;
      view.scrollTop = from.y - event.clientY;
    },
  });
  view.addEventListener("scroll", place, { passive: true });
  window.addEventListener("resize", () => size());

  for (const button of document.querySelectorAll(".group button")) {
    button.addEventListener("click", () => {
      const { benchmark, name, row, x, y } = button.dataset;
      const image = data.images.find((i) => i.benchmark === benchmark && i.name === name);
      if (row === left.value) left.value = right.value;
      right.value = row;
      zoom = "4";
      press(zooms, zooms.find((z) => z.dataset.zoom === "4"));
      choose(image, { x: Number(x), y: Number(y) });
      $("compare").scrollIntoView();
    });
  }

  viewer.classList.add("ready");
  refresh();
})();
