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
      const last = (row) => Number(Number.isNaN(value(row)));  // what was not measured
      [...body.rows].sort((a, b) => last(a) - last(b)
        || (up ? value(a) - value(b) : value(b) - value(a)) || 0)
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

  // Pictures are inside the page, or files beside it.
  const inside = JSON.parse($("pictures").textContent);
  const url = (path) => inside[path] || path;
  for (const image of document.querySelectorAll("img[data-src]")) image.src = url(image.dataset.src);

  // Images: PSNR-Y and SSIM-Y, or one of the further metrics.
  const metric = $("metric");
  if (metric) {
    const cells = [...document.querySelectorAll(".per-image td[data-m0]")];
    const before = cells.map((cell) => [cell.innerHTML, cell.dataset.value, cell.className]);
    metric.addEventListener("change", () => cells.forEach((cell, index) => {
      const [html, value, classes] = before[index];
      if (metric.value === "") {
        cell.innerHTML = html;
        cell.dataset.value = value;
        cell.className = classes;
      } else {
        cell.textContent = cell.dataset[`m${metric.value}`];
        cell.dataset.value = String(Number(cell.textContent));
        cell.className = "number";
      }
    }));
  }

  // The comparison.
  const viewer = $("viewer");
  if (!viewer) return;
  const data = JSON.parse($("data").textContent);
  const view = $("view"), canvas = $("canvas"), divider = $("divider"), handle = $("handle");
  const left = $("left"), right = $("right");
  const thumbs = [...document.querySelectorAll(".thumbs button")];
  const zooms = [...document.querySelectorAll("[data-zoom]")];
  let current = data.images[0], zoom = "fit", position = 0.5, error = false;

  const put = (image, path) => {
    if (image.dataset.path === path) return;
    image.dataset.path = path;
    image.src = url(path);
  };
  const show = (side, choice) => {
    const image = $(`image-${side}`), against = $(`against-${side}`);
    const source = current.sources[choice];
    const mapped = error && source && choice !== "lr" && choice !== "hr";
    image.hidden = !source;
    against.hidden = !mapped;
    if (mapped) put(against, current.sources.hr.src);
    if (source) {
      put(image, source.src);
      image.alt = `${data.titles[choice]}: ${current.name}${mapped ? ", error map" : ""}`;
      const file = $(`file-${side}`);
      if (file) file.href = source.src;
    }
    $(`side-${side}`).classList.toggle("error", Boolean(mapped));
    image.classList.toggle("crisp", choice === "lr" || zoom !== "fit");
    against.classList.toggle("crisp", zoom !== "fit");
    $(`said-${side}`).textContent = !source ? "not measured"
      : `${data.titles[choice]} ${source.said}${mapped ? " error" : ""}`;
  };
  for (const side of ["left", "right"]) {
    $(`image-${side}`).addEventListener("error", () => {
      $(`said-${side}`).textContent = `${$(`image-${side}`).dataset.path} is not beside this page`;
    });
  }

  const place = () => {
    const width = view.clientWidth;
    const at = view.scrollLeft + position * width;
    $("side-left").style.clipPath = `inset(0 ${Math.max(0, canvas.offsetWidth - at)}px 0 0)`;
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

  $("error").addEventListener("click", () => {
    error = !error;
    $("error").setAttribute("aria-pressed", String(error));
    $("legend").hidden = !error;
    refresh(middle());
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

  // Crops, points and names of images open the comparison, at their place where they have one.
  for (const opener of document.querySelectorAll("[data-name]")) {
    opener.addEventListener("click", () => {
      const { benchmark, name, row, x, y } = opener.dataset;
      const image = data.images.find((i) => i.benchmark === benchmark && i.name === name);
      if (opener.dataset.left) left.value = opener.dataset.left;
      if (row && row === left.value) left.value = right.value;
      if (row) right.value = row;
      zoom = x ? "4" : "fit";
      press(zooms, zooms.find((z) => z.dataset.zoom === zoom));
      choose(image, x ? { x: Number(x), y: Number(y) } : undefined);
      $("compare").scrollIntoView();
      divider.focus({ preventScroll: true });
    });
  }

  viewer.classList.add("ready");
  refresh();
})();
